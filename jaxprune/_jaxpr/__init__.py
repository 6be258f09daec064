"""One walker over jaxprs and a table of rules per question: the only importer of `jax.extend`."""
