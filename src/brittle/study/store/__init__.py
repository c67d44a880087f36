"""Finished cells on disk."""
