"""A study on one page: figures, tables, and what its numbers do not say."""
