"""Images made here: committed, imported, bootstrapped, converted."""
