"""What the kernel and compat tests and the benchmark stand on: private namespaces, daemons, images, terminals.

Nothing in here imports `wherry`: the same tests judge any engine that speaks the Docker Engine API.
"""
