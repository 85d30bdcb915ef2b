"""Images to and from archives: OCI layouts and docker-archives."""
