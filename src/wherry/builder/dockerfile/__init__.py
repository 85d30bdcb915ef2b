"""The Dockerfile language, and from it to the graph."""
