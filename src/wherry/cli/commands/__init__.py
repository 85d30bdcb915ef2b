"""One module per command or family; each has COMMANDS, and is imported only when its command runs."""
