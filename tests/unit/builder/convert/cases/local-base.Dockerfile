FROM root
RUN one
COPY two /
