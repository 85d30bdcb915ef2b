# V is the version
ARG V=1
# nothing of this

# name is not said first
# base builds it
FROM a AS base
#
# A first
# B second thing
ARG A B=2
# detached
#
ARG C
