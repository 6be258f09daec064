"""Exact selection of the highest scores by counting."""
