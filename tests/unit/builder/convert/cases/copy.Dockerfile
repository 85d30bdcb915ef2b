FROM alpine:3.20
WORKDIR /app
ARG WHO=app
COPY --chown=$WHO:1000 --chmod=0755 --exclude=*.md --exclude=docs/** src ./lib/ /app/
COPY --chmod=u=rwX,go=rX --link a /a
COPY --link --chown=10:20 b /b
COPY --link --chown=app b /c
COPY --parents src/./pkg/*.go other/file /kept/
COPY ["with space", "x*", "/y/"]
COPY ../above/../up /
ADD archive.tar.gz /unpacked/
ADD --unpack=false archive.tar.gz /asis/
COPY lib/inner/file /
