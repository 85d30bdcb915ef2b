FROM a
RUN --device=name=x,requierd=true z
