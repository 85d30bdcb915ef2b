"""What a container is to be: the request checked, laid over its image, turned into what the runtime is asked for."""
