FROM a
COPY a b* /c/
COPY --from=b --chown=u:g --chmod=u=rwX,go=rX --link --parents=true --exclude=*.md --exclude=x/** ./a /b
COPY ["a b", "c d"]
ADD --link=false --checksum=sha256:00 --keep-git-dir --unpack=true https://x/y.tgz git@h:r.git /
ADD --keep-git-dir=false --unpack=FALSE --exclude=z --chown=1 --chmod=0 a b
ADD x y
