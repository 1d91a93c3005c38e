"""A plan as Parsl's graph of futures, and stages as processes of this machine."""
