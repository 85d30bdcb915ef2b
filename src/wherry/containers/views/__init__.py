"""Docker's documents about containers: list, inspect, top, stats."""
