"""Structures, graphs, neighbour lists and units."""
