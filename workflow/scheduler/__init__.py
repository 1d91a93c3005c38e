"""Queries to Slurm and PBS; nothing else reads their answers."""
