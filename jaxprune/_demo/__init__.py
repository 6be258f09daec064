"""The demonstration: prune real images' classifiers by every strategy and report what is left."""
