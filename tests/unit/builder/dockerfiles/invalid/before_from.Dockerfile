ARG a

RUN x
FROM b
