"""The networks, as flax.nnx modules that know nothing of files or configs."""
