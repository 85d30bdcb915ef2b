FROM a
RUN --mount=form=x,target=$y z
