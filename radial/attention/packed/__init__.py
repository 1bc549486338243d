"""Clips of unlike sizes in one call of a transformer, without a token of padding."""
