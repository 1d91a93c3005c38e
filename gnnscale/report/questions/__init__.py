"""One file for each of the three questions of arXiv 2504.08112, and what they share."""
