"""Clips as frames and files. Imports errors and files."""
