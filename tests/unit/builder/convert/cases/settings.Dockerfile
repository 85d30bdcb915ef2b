FROM debian
MAINTAINER Somebody <s@example.org>
LABEL one=1 "two words"="a \"quoted\" value" three=$LANG
LABEL one=2
EXPOSE 8000-8002 53/UDP $EMPTY 80
VOLUME /data /logs
VOLUME ["/with space"]
USER $LANG:group
STOPSIGNAL SIGINT
HEALTHCHECK --interval=90s --timeout=1500ms --start-period=2m --start-interval=5s --retries=39 CMD curl "x"
CMD echo $HOME
SHELL ["/bin/ash", "-eo", "pipefail", "-c"]
CMD echo "again"
ENTRYPOINT exec app
ONBUILD RUN one
ONBUILD COPY a b
