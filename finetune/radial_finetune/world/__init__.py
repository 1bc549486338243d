"""The shapes world: an endless, seeded source of captioned clips with exact ground truth.

``scene`` says what happens, ``render`` draws it at any length and size, ``caption`` puts it into words, ``steered``
draws what steers a clip beside these. Everything is a pure function of its arguments; torch is the only dependency,
and for signals OpenCV.
"""

from radial_finetune.world.caption import describe
from radial_finetune.world.render import render, tracks
from radial_finetune.world.scene import Figure, Scene, draw_scene

__all__ = ["Figure", "Scene", "describe", "draw_scene", "render", "tracks"]
