"""Studies: a TOML file becomes cells; cells are computed, stored and read back."""
