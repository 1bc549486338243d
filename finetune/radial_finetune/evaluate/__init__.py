"""Measures what a model made of a prompt from the shapes world, against the world's ground truth.

``python -m radial_finetune.evaluate --out FOLDER`` writes a report and a contact sheet.
"""
