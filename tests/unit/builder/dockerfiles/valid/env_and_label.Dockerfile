FROM a
ENV a=1 b="two words" c='$d' e=f\ g "h i"=j k=
ENV legacy   value with  spaces "and quotes"
LABEL a.b="c" "d e"="f" multi="line \
continues"
LABEL legacy x
