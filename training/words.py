"""The phase words: the vision half goes on with long words, while the codebook stays, and with it every plan that was kept.

A letter's token says how many letters stand to its right, which the vision half has to count. Of eight letters it counted seven
in most words, because few of the lessons of the phase vision have so many.
"""

import random

import torch

from .loop import Recipe
from .vision import SCENES, loss_of_scenes
from .world import Scene, random_scene

RECIPE = Recipe(steps=1500, learning_rate=1e-3, warmup=50)
SIDES = (6, 8, 8, 9, 10, 11, 12)  # cells
LONG = 5  # letters
LONG_WORDS = 0.6  # share of scenes with a long word


def loss_of(ar_model, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return loss_of_scenes(ar_model, [_scene(rng) for _ in range(SCENES)], generator)


def _scene(rng: random.Random) -> Scene:
    long = rng.random() < LONG_WORDS
    while True:
        scene = random_scene(
            rng, rng.choice(SIDES), rng.choice(SIDES), with_word=1.0 if long else 0.5, anywhere=rng.random() < 0.5
        )
        if not long or (scene.word and scene.word.width >= LONG):
            return scene
