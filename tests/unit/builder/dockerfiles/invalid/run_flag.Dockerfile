FROM a
RUN --mout=target=/x \
  y
