"""What is told of the registry: webhooks, metrics, the web page."""
