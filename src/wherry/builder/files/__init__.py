"""Steps that change files."""
