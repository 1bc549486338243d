"""Self-attention from chunk to chunk of a story: over a cache, or over all chunks of a story at once."""
