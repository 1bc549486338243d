"""Models from the Hugging Face hub: what is missing of them, and fetching it. Imports errors, files and checkpoints."""
