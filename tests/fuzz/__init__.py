"""Coverage-guided fuzzing of what reads strangers' bytes: `make fuzz`. Unit tests replay the corpus."""
