"""Families whose text shares the sequence with the clip: one attention over both."""
