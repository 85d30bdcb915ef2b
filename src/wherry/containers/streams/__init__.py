"""What flows in and out of a running container: attach, logs, exec, terminal size."""
