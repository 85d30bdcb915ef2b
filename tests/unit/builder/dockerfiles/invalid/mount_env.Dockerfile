FROM a
RUN --mount=type=cache,target=/x,env=X y
