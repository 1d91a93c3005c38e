"""State of a run on disk: journal, lease, status, attempts, links."""
