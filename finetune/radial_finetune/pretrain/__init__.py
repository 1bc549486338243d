"""Trains the bundled tiny model from scratch on the shapes world: autoencoder, text encoder, denoiser.

``python -m radial_finetune.pretrain --out FOLDER`` runs all stages and resumes where it stopped.
"""
