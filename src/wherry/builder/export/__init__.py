"""What becomes of results: images, archives, files, caches for elsewhere."""
