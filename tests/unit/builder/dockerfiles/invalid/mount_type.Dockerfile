FROM a
RUN x \
  && y
RUN \
  --mount=type=cahce,target=/x \
  z
