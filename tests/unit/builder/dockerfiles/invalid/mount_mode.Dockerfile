FROM a
RUN --mount=type=cache,target=/x,mode=0888 y
