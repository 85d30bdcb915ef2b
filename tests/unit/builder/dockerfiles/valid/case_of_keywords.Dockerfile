From a
cOpY b c
run d
