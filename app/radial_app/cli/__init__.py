"""The commands, one a file. Imports every room of radial_app."""
