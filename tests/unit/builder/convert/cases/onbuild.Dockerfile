FROM trigger AS base
ONBUILD RUN own trigger
ONBUILD ENV X=1
RUN first

FROM base
RUN second $MODE
