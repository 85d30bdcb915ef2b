"""Who may do what: passwords, tokens, rules."""
