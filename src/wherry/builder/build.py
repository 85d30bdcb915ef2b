"""A build from options to results."""
