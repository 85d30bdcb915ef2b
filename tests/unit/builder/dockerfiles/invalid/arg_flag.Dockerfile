FROM a
ARG --x y
