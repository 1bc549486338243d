"""Models onto a device: weights, adapters, 8 bit, memory. Imports requests, models, attention and video."""
