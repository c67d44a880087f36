"""Attacks on a study's rows."""
