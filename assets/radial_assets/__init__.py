"""Data only: the bundled model and prompts. Find files with ``importlib.resources.files("radial_assets")``."""
