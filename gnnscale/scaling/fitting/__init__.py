"""Forms of laws, their optimum, their intervals, and whether points determine them."""
