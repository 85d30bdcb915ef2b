FROM a
COPY --link= b c
