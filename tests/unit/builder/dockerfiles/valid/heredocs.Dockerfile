FROM a
RUN <<EOF
echo $one
  EOF
EOF
RUN python3 <<-"EOT" && cat 0<<'B C' <<D
	import this
		indented
	EOT
one
B C
EOF
D
COPY <<a.txt <<-'b.txt' c /d/
A $x
a.txt
	B $x
	b.txt
ADD --chmod=600 <<x y /z
x
RUN ["cat", "<<EOF"]
RUN echo '<<EOF' "<<EOF" \<<EOF 1<<2<<3 << x a<<EOF
RUN echo <<EOF 'open
ENV x=<<EOF
ONBUILD RUN <<EOF
later
EOF
CMD <<EOF
