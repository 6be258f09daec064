"""Benchmarks, one question a module: `python -m benchmarks [question]`."""
