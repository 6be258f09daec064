"""Arrays and trees of them: ordered keys of floats, counts beyond 32 bits, meshes, paths."""
