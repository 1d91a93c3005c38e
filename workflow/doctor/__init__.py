"""Checks of a site before it is used, and a first file for a new one."""
