"""Evaluates a labelled jaxpr at smaller shapes."""
