"""Where the self-attention of each model family sits, and where its tokens lie. One small file per family.

To add one, see docs/families.md."""
