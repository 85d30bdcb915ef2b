FROM a
HEALTHCHECK NONE
HEALTHCHECK none
HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=0 --start-interval=250ms --retries=0 CMD curl -f "x" || exit 1
HEALTHCHECK --retries=+3 cmd ["a", "b"]
HEALTHCHECK CMD	x
