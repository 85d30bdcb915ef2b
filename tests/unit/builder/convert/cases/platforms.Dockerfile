FROM --platform=$BUILDPLATFORM alpine:3.20 AS build
WORKDIR /src
COPY . .
ARG TARGETARCH
RUN make $TARGETARCH

FROM --platform=$BUILDPLATFORM alpine:3.20 AS assets
COPY assets /assets

FROM alpine:3.20
COPY --from=build /out /
COPY --from=assets /assets /assets
COPY only.txt /
RUN ldconfig
