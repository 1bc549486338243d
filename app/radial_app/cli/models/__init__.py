"""Commands on models: fetching them, and measuring what their layers contribute."""
