"""Measuring what each layer's sparse attention changes at each step of a model, for policies; and ways to attend on
captures. Imports generation."""
