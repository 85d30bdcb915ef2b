FROM a
RUN --mount=type=cache,readonyl y
