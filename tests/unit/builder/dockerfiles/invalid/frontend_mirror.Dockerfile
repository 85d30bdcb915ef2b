# syntax = example.org/docker/dockerfile:1 extra
FROM a
