"""The only code that edits structure, always on a copy."""
