"""What tests of registries share: servers to talk to, a small client, documents to push."""
