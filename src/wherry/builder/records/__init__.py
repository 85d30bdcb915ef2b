"""What remains of a build: its history, why steps ran."""
