"""A network's numbers without an attack."""
