ARG a b=1 c="x y" d='$e' f=g\ h i=
FROM a
ARG j=$a k
