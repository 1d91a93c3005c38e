"""One short file for each command of a plan, and two commands for use by hand."""
