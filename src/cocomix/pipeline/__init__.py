"""A run: its settings, its stages and the order they are done in."""
