FROM alpine:3.20 AS build
WORKDIR /src
ARG ID=go
RUN --mount=type=cache,id=$ID,target=/root/.cache,sharing=locked,uid=1000,mode=0700 \
    --mount=type=cache,target=rel,source=/seed,ro,from=alpine:3.20 \
    --mount=target=. \
    --mount=type=bind,from=alpine:3.20,source=/etc,target=/alpine,rw \
    --mount=type=tmpfs,target=/scratch,size=1m \
    --mount=type=secret,id=token,required=true \
    --mount=type=secret,source=dir/key,target=/keys/k,uid=1,gid=2,mode=0440 \
    --mount=type=secret,id=password,env=PASSWORD \
    --mount=type=secret,id=both,env=BOTH,target=/both \
    --mount=type=ssh --mount=type=ssh,id=other,target=/agent,required \
    --network=none make $PASSWORD
FROM alpine:3.20 AS build2
RUN seed
FROM build2
RUN --mount=source=tools/x,target=/x --mount=from=build2,target=/y,type=bind /x
