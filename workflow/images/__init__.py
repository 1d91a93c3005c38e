"""Container images: the image of a site, its build and its checks, and the commands that run stages in it."""
