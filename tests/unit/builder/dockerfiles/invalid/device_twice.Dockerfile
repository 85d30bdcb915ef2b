FROM a
RUN --device=x,name=y z
