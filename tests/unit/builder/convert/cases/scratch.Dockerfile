# only a config
FROM scratch
ENV A=b
CMD ["/x"]
