"""Shards on disk, mapped into memory or spread over nodes."""
