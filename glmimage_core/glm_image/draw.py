"""How a prior token is drawn: temperature, top-k, top-p, then a race of exponentials whose noise the CPU draws.

Given the seed, the noise of a place is known before its logits are. So the token there is a function of the logits alone, which
is what makes looking ahead exact.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch

from ..diffusion import image_seeds


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the logits. The defaults are the reference implementation's.

    temperature 0 takes the likeliest token, top_p 1 and top_k 0 switch those filters off. Raises ValueError for values
    that mean nothing.
    """

    temperature: float = 0.9
    top_p: float = 0.75
    top_k: int = 50

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie above 0 and not above 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or above")


def draw(sampling: Sampling, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One token of each row: logits and exponential noise, [..., V] float32 each -> [...] int64.

    `torch.multinomial(p, 1)` is the argmax of p / E with E exponential. With E from the CPU, tokens are those of the reference
    implementation there, and the same ones on every device and in every batch. The filters are transformers', in its order; after
    top-k only the candidates are sorted. Which of equal scores stay at the limit of a filter is a matter of how PyTorch sorts a
    whole row; on the CPU such rows are drawn by transformers' own filters, elsewhere those with the higher ids stay.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    if sampling.top_p == 1 or logits.device.type != "cpu":
        return _race(sampling, logits / sampling.temperature, noise)
    scores = logits / sampling.temperature
    shares, drawn = scores.softmax(dim=-1).max(dim=-1)
    several = shares < max(sampling.top_p, 0.5) + ROUNDING  # in other rows top-p leaves the likeliest token alone
    if several.all():
        return _race(sampling, scores, noise)
    if several.any():
        drawn[several] = _race(sampling, scores[several], noise[several])
    return drawn


ROUNDING = 1e-3  # far more than float32 errs in a share


def _race(sampling: Sampling, scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Filter and draw: logits over the temperature and noise, [..., V] each -> [...] int64."""
    whole, places, doubtful = scores, None, []
    if 0 < sampling.top_k < scores.shape[-1]:
        scores, places, more_tie = _top(scores, sampling.top_k)
        doubtful.append(more_tie)
    if sampling.top_p < 1:
        scores, order = scores.sort(dim=-1, stable=True)  # the likeliest last
        dropped = scores.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        others, dropped = scores[..., :-1], dropped[..., :-1]  # the likeliest stays
        if scores.device.type == "cpu":
            next_dropped = torch.nn.functional.pad(dropped[..., 1:], (0, 1))
            doubtful.append((others == scores[..., 1:]) & (dropped != next_dropped))
        others.masked_fill_(dropped, -torch.inf)
        places = order if places is None else places.gather(-1, order)
    if places is None:
        return (scores.softmax(dim=-1) / noise).argmax(dim=-1)
    winner = (scores.softmax(dim=-1) / noise.gather(-1, places)).argmax(dim=-1, keepdim=True)
    drawn = places.gather(-1, winner).squeeze(-1)
    if drawn.device.type == "cpu" and (unsure := torch.cat(doubtful, dim=-1).any(dim=-1)).any():
        drawn[unsure] = (_probabilities(sampling, whole[unsure]) / noise[unsure]).argmax(dim=-1)
    return drawn


def _top(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `count` highest scores, where they stand, in order of place, and [..., 1] whether more tie than there is room for.

    Those that tie with the last of them stay too, as in transformers: in bfloat16 ties are common. The other scores are -inf.
    Up to a 64th of a row PyTorch's CPU kernel is several times as fast as beyond.
    """
    vocabulary = scores.shape[-1]
    room = min(max(count + 8, min(4 * count, vocabulary // 64)), vocabulary)
    highest, places = scores.topk(room, dim=-1)
    least = highest[..., count - 1 : count]
    more_tie = (highest[..., -1:] == least) & (room < vocabulary)
    highest.masked_fill_(highest < least, -torch.inf)
    places, order = places.sort(dim=-1)
    return highest.gather(-1, order), places, more_tie


def _probabilities(sampling: Sampling, scores: torch.Tensor) -> torch.Tensor:
    """What transformers' filters leave of rows of scores, [N, V]."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(dim=-1)


def exponential(count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` numbers of PyTorch's `exponential_` on the CPU, [count] float32.

    Where it takes one uniform number for each of its own, which its builds with Intel's library do not, the same ones come in a
    third of the time.
    """
    if _is_of_uniform_numbers():
        return _of_uniform_numbers(count, generator)
    return torch.empty(count).exponential_(generator=generator)


def _of_uniform_numbers(count: int, generator: torch.Generator) -> torch.Tensor:
    return -torch.log1p(-torch.rand(count, generator=generator, dtype=torch.float64)).float()


@cache
def _is_of_uniform_numbers() -> bool:
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = torch.empty(2**14).exponential_(generator=theirs)
    return torch.equal(_of_uniform_numbers(2**14, ours), expected) and torch.equal(ours.get_state(), theirs.get_state())


@dataclass(frozen=True)
class Variation:
    """How far a plan goes from that of one seed to that of another.

    strength: the share of places, 0..1, that are drawn with the noise of the other seed: at 0 the plan is that of its own seed,
    at 1 that of the other one. Places that are varied at one strength are varied at every higher one too. Raises ValueError for
    a share that is none.
    """

    seed: int
    strength: float

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"the strength of the variation is {self.strength}; it must lie in 0..1")

    def of_batch(self, count: int) -> list["Variation"]:
        """Those of each image of a batch: towards its own seed."""
        return [Variation(seed, self.strength) for seed in image_seeds(self.seed, count)]


class Noise:
    """The exponential noise of every place of some sequences, drawn on the CPU in the order of places.

    Token by token, as the reference implementation draws it: one call for several tokens would give other numbers. places: of a
    sequence; behind them is no noise, but ones. width: of what is drawn, of which the first `kept` are used. variations: of each
    sequence, or none.
    """

    def __init__(self, seeds: Sequence[int], *, places: int, width: int, kept: int, variations: Sequence[Variation] = ()):
        self.places, self.behind = places, torch.ones(kept)
        self.streams = [_rows(seed, width, kept) for seed in seeds]
        if variations:
            others = (_rows(variation.seed, width, kept) for variation in variations)
            self.streams = [_varied(*of_each) for of_each in zip(self.streams, others, variations, strict=True)]
        self.rows: list[deque[torch.Tensor]] = [deque() for _ in seeds]  # of the places from `starts` on
        self.starts = [0] * len(seeds)

    def prepare(self, count: int) -> None:
        """Draw the noise of `count` places of each sequence, counted from the first place of the last windows."""
        for stream, rows, start in zip(self.streams, self.rows, self.starts, strict=True):
            while len(rows) < min(count, self.places - start):
                rows.append(next(stream))

    def windows(self, places: Sequence[int], count: int) -> torch.Tensor:
        """The noise of `count` places from a first one on for each sequence, [B, count, kept] float32.

        What lies before the first places is forgotten.
        """
        self.prepare(max(place - start for start, place in zip(self.starts, places, strict=True)) + count)
        for rows, start, place in zip(self.rows, self.starts, places, strict=True):
            for _ in range(min(place - start, len(rows))):
                rows.popleft()
        self.starts = list(places)
        rows_of = ([*islice(rows, count), *[self.behind] * (count - len(rows))] for rows in self.rows)
        return torch.stack([torch.stack(rows) for rows in rows_of])


def _rows(seed: int, width: int, kept: int) -> Iterator[torch.Tensor]:
    """The noise of one place after another, [kept] float32 each."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield exponential(width, generator)[:kept]


def _varied(own: Iterator[torch.Tensor], other: Iterator[torch.Tensor], variation: Variation) -> Iterator[torch.Tensor]:
    """The noise of one place after another, a share of it from another seed."""
    shares = random.Random(f"variation {variation.seed}")  # a stream that is not the noise's own
    for of_own, of_other in zip(own, other, strict=True):
        yield of_other if shares.random() < variation.strength else of_own
