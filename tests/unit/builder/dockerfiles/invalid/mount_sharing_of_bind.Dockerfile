FROM a
RUN --mount=target=/x,sharing=locked y
