FROM a
RUN --network=host --network=none x
