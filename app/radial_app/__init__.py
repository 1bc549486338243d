"""The application: command line and progress."""
