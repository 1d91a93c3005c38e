"""Questions to Slurm and PBS; the only readers of their answers."""
