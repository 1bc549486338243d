"""Clips into a cache of latents. Imports objective."""
