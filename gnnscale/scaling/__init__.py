"""Scaling laws from finished runs: forms, exponents, intervals, and what the points do not say."""
