"""Directories into which clients send their files."""
