"""A bracket for every image: a proved radius, and the nearest adversarial image that was found."""
