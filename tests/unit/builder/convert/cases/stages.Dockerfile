FROM alpine:3.20 AS tools
RUN make tools

FROM alpine:3.20 AS never
RUN false

FROM tools AS more
ENV FROM=more
RUN make more

FROM scratch
COPY --from=TOOLS /bin/tool /bin/
COPY --from=2 /more /more
COPY --from=alpine:3.20 /etc/os-release /etc/
COPY --from=debian /etc/debian_version /etc/
