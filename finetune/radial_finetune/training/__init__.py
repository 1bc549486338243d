"""From a cache to an adapter. Imports data."""
