"""The networks, and what turns a network into a potential."""
