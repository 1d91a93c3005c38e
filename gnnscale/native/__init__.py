"""The training step of the default network on CPUs, in C++: the same mathematics as in gnnscale/models, without PyTorch."""
