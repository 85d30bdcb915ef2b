FROM a
RUN --mount='"a"b' y
