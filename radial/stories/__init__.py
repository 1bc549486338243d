"""Many prompts, one film: chunk by chunk, with a memory of every earlier segment."""
