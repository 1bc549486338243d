"""Fine-tuning runs and their data sets, as a server keeps them. Imports jobs."""
