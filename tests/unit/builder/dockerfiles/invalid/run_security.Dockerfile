FROM a
RUN --security=insecrue x
