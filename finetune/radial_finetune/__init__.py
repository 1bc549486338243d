"""Training for Radial: the shapes world and the pre-training of the bundled model."""
