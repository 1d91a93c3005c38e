"""Conversion of a data set into shards, in parallel and resumable."""
