"""Small models of many kinds, each with the axes of its parameters that cannot be pruned, and why."""
