FROM a
RUN --mount=type=secret,id=a,source=b y
