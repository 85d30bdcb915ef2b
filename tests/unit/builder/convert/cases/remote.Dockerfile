FROM alpine:3.20
ADD https://example.org/dir/file%20one.tar.gz?x=1 https://example.org/ /got/
ADD --checksum=sha256:1111111111111111111111111111111111111111111111111111111111111111 --chmod=755 https://example.org/tool /bin/tool
ADD --unpack=true https://example.org/x.tar /x
ADD --keep-git-dir=true --chown=1:2 git@example.org:team/repo.git#v1:sub local /src/
ADD --link https://example.org/repo.git?branch=main&submodules=false /repo
