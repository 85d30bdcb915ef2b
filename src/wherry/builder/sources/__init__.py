"""Where files and base images come from: git, the web, archives, registries, clients' stores."""
