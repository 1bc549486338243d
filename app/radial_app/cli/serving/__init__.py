"""Servers and who may use them, from the command line."""
