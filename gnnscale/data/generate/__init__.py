"""Generated structures with real labels: builders and potentials."""
