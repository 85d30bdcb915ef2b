"""A registry server: the OCI distribution specification over a store of its own, or over the engine's images."""
