"""Repositories of other registries, brought when they are asked for."""
