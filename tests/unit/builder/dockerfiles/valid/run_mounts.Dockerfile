FROM a
RUN --mount=target=/x --mount=type=bind,from=b,source=s,dst=/y,rw --mount=src=s,destination=/z,readwrite=true,ro=0 x
RUN --mount=type=cache,target=/c,id=i,sharing=locked,mode=0700,uid=1,gid=2,from=b,readonly x
RUN --mount=type=tmpfs,target=/t,size=64m x
RUN --mount=type=secret,id=s,required,mode=0444,env=TOKEN --mount=required=true,type=ssh,id=k,target=/s x
RUN --mount=type=secret,target=/run/x --mount=type=ssh --mount=TYPE=CACHE,\"target=/a,b\" x
RUN --mount=type=$kind,target=${dir}/x x
