"""Evaluates a function in stages, while its parameters change."""
