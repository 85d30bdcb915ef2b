"""Wherry: the Docker engine, in Python.

Each room's module docstring says what it is; docs/architecture.md draws the house.
"""

__version__ = "0.1.0"
