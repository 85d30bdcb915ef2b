#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char answer[] =
    "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"hello\":\"c\"}";

static void stop(int number) { (void)number; _exit(0); }

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--version") == 0)
        return puts("hello 1.0") < 0;
    signal(SIGTERM, stop);
    int server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8000)};
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 16))
        return 1;
    for (;;) {
        char request[4096];
        int client = accept(server, NULL, NULL);
        if (client < 0)
            continue;
        if (read(client, request, sizeof request) > 0)
            (void)!write(client, answer, sizeof answer - 1);
        close(client);
    }
}
