"""Messages in chunks and as Triton kernels."""
