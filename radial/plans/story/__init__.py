"""What a chunk of a story sees of all that came before it."""
