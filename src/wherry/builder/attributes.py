"""BuildKit's frontend attributes, parsed into `Options`."""
