FROM alpine:3.20 AS first
COPY a /
FROM first AS second
COPY b /
FROM second
RUN false
