"""Structures from published files to batches: formats, generated data, conversion, storage, loading."""
