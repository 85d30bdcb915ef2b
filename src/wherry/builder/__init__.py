"""Build: a Dockerfile or an LLB definition becomes a graph, the graph becomes file trees, they become images."""
