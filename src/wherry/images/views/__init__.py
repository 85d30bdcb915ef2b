"""Docker's documents about images: list, inspect, history, disk usage."""
