# café
FROM a
RUN echo "é ☃  x"
LABEL 名前=値
