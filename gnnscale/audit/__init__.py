"""Checks of converted data: duplicates, leaks between splits, outliers, wrong units."""
