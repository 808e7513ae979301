"""Experiments: variants x seeds in one or more settings, what they cost, and what they say about the paper's claims."""
