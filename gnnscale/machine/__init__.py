"""Facts about this machine: rank, accelerator, fitness of a node, abilities of a directory."""
