"""The demonstration: prunes a classifier of real images by every strategy, and reports the accuracy that is left."""
