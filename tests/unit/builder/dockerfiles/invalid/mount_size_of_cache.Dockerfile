FROM a
RUN --mount=type=cache,target=/x,size=1 y
