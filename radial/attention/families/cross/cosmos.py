"""Cosmos: text has cross-attention of its own."""

from radial.attention.family import Family

FAMILY = Family()
