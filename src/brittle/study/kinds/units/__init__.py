"""Which units of a network matter."""
