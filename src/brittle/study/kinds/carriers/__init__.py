"""Which units carry an adversarial perturbation."""
