"""Commands that make files of clips that are there, without a model."""
