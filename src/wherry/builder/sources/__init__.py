"""Where trees come from: images, git, the web, archives."""
