"""Tells you whether an image classifier is robust or only looks robust, and why."""

__version__ = "0.1.0"
