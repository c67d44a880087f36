"""Which test images a study attacks."""
