"""What a model made, in numbers that need no downloaded weights.

``measures`` reads any clip: motion, steadiness, drift, freezes, repetition, cuts. ``compare`` sets two clips of one seed against
each other. ``shapes`` asks for scenes of the shapes world and holds the clips against its ground truth.
"""
