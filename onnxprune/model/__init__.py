"""Reading and writing models, the shapes of their values, and what they cost."""
