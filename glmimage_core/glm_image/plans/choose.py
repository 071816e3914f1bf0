"""The best of several plans or sketches: by hand, by how sure the planner was, by what a reader finds in them."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import torch

from ...diffusion import image_seeds
from ..prior import Prior


def chosen(prior: Prior, images: Sequence[int]) -> Prior:
    """The plans of some images of a batch, counted from 0, in this order. Raises ValueError for none and for one there is not.

    The seed is that of the first of them; those of the others need not follow it.
    """
    if not images:
        raise ValueError("no plan is chosen; give the number of one, counted from 0")
    if outside := [image for image in images if not 0 <= image < prior.batch]:
        raise ValueError(f"there is no plan {outside[0]}: there are {prior.batch}, counted from 0")
    rows = torch.tensor(images)
    return replace(
        prior,
        tokens=prior.tokens[rows],
        preview=None if prior.preview is None else prior.preview[rows],
        dropped=None if prior.dropped is None else prior.dropped[rows],
        seed=image_seeds(prior.seed, prior.batch)[images[0]],
    )


def numbers_in(text: str) -> list[int]:
    """The numbers of images as a person writes them: "2" or "0, 3". Raises ValueError for anything else, and for none."""
    words = text.replace(",", " ").split()
    if not words:
        raise ValueError("no plan is chosen; write the number of one, counted from 0")
    if wrong := [word for word in words if not word.isdecimal()]:
        raise ValueError(f"{wrong[0]!r} is no number of a plan; write numbers counted from 0, such as 0, 3")
    return [int(word) for word in words]


def best(scores: Sequence[float], count: int) -> list[int]:
    """The images with the highest scores, the best first; among equals the first ones. Raises ValueError for too many."""
    if not 1 <= count <= len(scores):
        raise ValueError(f"{count} of {len(scores)} plans cannot be kept; keep 1 to {len(scores)}")
    return sorted(range(len(scores)), key=lambda image: -scores[image])[:count]


def found_share(texts: Sequence[str], answer: str) -> float:
    """How much of some texts stands in what a reader wrote down, 0..1.

    The mean over the texts of the longest run of their letters in the answer: 1 where each of them stands there letter by letter.
    Capitals and small letters differ, spaces and line breaks do not.
    """
    answer = " ".join(answer.split())

    def share(text: str) -> float:
        text = " ".join(text.split())
        return SequenceMatcher(None, text, answer, autojunk=False).find_longest_match().size / len(text)

    return sum(map(share, texts)) / len(texts)
