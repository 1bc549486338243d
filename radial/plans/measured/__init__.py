"""What each layer contributes at each step of a model, as it was measured, and which of them to compute densely for it:
the file, and the budget. Imports the settings' kinds and the policy."""
