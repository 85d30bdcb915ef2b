"""Steps that run a program."""
