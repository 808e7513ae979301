"""Grids of variants and seeds, their plan, their claims and their report."""
