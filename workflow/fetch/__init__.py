"""Published data: downloads that resume, the check of each file, and its unpacking. Standard library only."""
