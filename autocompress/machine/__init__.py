"""The machine that everything runs on: what it is, and who times on it now."""
