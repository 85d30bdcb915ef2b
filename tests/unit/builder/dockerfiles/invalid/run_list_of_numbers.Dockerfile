FROM a
RUN [1, 2]
