"""Cells of a plan are computed here, by several processes, or on a Ray cluster."""
