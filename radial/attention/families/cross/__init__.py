"""Families whose text has cross-attention of its own: the self-attention is over the clip alone."""
