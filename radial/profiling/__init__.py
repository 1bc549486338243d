"""Measuring what each layer's sparse attention changes at each step of a model, for policies. Imports generation."""
