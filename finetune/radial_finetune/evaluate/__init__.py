"""What a model made, in numbers that need no downloaded weights.

``measures`` reads any clip: motion, steadiness, drift, freezes, repetition, cuts. ``pairs`` holds clips against others.
``compare`` sets radial against dense attention at one seed. ``shapes`` asks for scenes of the shapes world and holds
the clips against its ground truth.
"""
