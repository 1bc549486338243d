"""From a loaded model and a request to a video with its receipt. Imports every room of radial."""
