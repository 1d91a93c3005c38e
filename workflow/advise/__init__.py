"""Advice on what to train with a budget of GPU-hours."""
