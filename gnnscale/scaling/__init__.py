"""Scaling laws from finished runs: which form, which exponents, how sure, and what the points do not say."""
