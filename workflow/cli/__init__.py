"""The command line: arguments, commands, and all that they print."""
