FROM a
RUN echo $HOME && \
    true
RUN ["/bin/x", "a b", "\u00e9\t"]
RUN [ -f x ] && echo "[" 
RUN ["not", 'json']
RUN --network=none --security=insecure true
RUN --device=vendor.com/class=gpu --device=name=x,required=true --device=/dev/null,required true
RUN -- --not-a-flag
RUN
RUN --mount=type=tmpfs,target="/a b" --network='host' x
