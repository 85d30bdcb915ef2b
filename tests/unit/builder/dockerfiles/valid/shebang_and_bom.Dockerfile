#!/usr/bin/env docker
# syntax = docker.io/docker/dockerfile-upstream:master@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
FROM a
