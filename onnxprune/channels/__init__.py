"""Which channels belong together: facts, the registry of operators, and groups."""
