"""Drivers that outlive the session in which they were started."""
