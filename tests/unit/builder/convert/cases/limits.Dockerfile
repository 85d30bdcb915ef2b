FROM debian
RUN --network=host --security=insecure --device=vendor.com/gpu=all,required --device=/dev/fuse one
RUN two
