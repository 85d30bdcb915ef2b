FROM alpine:3.20
ARG WHO=world
COPY --chmod=600 plain <<first.txt <<-'second' <<three /etc/
hello $WHO "\$x"
first.txt
	tab $WHO
second
3
three
COPY <<EOF /one
EOF
RUN <<EOF
echo $WHO
echo more
EOF
RUN <<-script
	#!/usr/bin/env python3
	print("hi")
script
RUN cat <<A > /a && sh <<"B" -x
in a
A
in b
B
RUN python3 <<EOF
print(1)
EOF
