"""What remains of a build: its record, its log, and why each of its steps ran."""
