FROM debian
WORKDIR sub/../deeper
WORKDIR /
WORKDIR ../x//y/
USER 1000
WORKDIR z
COPY file .
COPY file ./
COPY file to
COPY file /abs/./dir/.
RUN pwd
