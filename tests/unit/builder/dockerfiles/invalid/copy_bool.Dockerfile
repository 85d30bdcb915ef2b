FROM a
COPY --link=yes b c
