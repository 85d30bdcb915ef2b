FROM alpine:3.20 AS seed
RUN make seed
FROM scratch AS nothing
FROM alpine:3.20
RUN --mount=type=cache,from=seed,source=/seed,target=/c --mount=from=0,target=/y --mount=from=nothing,target=/z,rw /x
RUN --mount=source=tools/x,target=/x /x
