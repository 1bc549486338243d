"""What a run tunes: adapters on a transformer, their files, and what their layers are called elsewhere."""
