"""Container images: how they are found, built and run."""
