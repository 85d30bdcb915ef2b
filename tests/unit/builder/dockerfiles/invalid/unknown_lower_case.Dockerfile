FROM a
coyp b c
