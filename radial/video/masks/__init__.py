"""Masks of clips: what lies outside them is kept, and one that is drawn on a frame follows what it lies on."""
