"""One file for each scheduler: its options in a site's file. The files here are the list."""
