"""Additive masks."""
