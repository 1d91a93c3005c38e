"""Commands of schedulers, a file for each; nothing else reads their answers."""
