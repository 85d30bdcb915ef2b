FROM alpine:3.20 AS build
RUN never

FROM docker.io/library/base
COPY --from=build /out /
COPY --from=site /page.html /
COPY --from=site --exclude=x /style.css /
COPY --from=repo /README /
COPY --from=page /context /
COPY --from=layout /l /
COPY --from=empty / /
COPY own /
RUN --mount=from=site,source=more,target=/m true
