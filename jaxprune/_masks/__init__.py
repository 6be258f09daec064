"""Masks of weights and of frequencies."""
