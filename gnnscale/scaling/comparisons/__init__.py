"""Comparisons without a law: width and depth, data and steps, doublings, equal compute."""
