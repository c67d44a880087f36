"""Charts, grids of images and pages: SVG, numbers as text, files that are written whole."""
