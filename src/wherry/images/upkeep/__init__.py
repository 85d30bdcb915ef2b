"""What keeps the store in order: tags, removal, recovery, checks."""
