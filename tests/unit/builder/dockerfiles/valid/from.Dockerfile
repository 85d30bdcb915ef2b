FROM --platform=$BUILDPLATFORM a:1@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb aS My-Stage_1.x
FROM scratch
from my-stage_1.X as other
FROM	${X:-y}	AS	tabs
