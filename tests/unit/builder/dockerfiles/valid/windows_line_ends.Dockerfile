# escape=\
FROM a
RUN echo \
  b
COPY <<EOF /x
one
two
EOF
