FROM a
ONBUILD COPY . /src
onbuild   Run  make   all
ONBUILD --  env a=b
