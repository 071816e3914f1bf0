"""Prompts of nano's world in English and Chinese, with what they ask for.

Request   text to image: the prompt, and what the picture must show
Edit      image editing: the reference scenes, the instruction, the scene that must come out
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..glmimage_core.glm_image.trained_on import words_of
from .world import (
    KINDS,
    LONGEST_WORD,
    PLACES,
    SPANS,
    Scene,
    Shape,
    Word,
    other_colour,
    other_ground,
    random_scene,
    random_word,
    with_thing,
)

LANGUAGES = ("en", "zh")
AN = "an"  # before orange, which no phrase has


@dataclass(frozen=True)
class Claim:
    """A number of shapes of one kind and colour. size and place are None where the prompt leaves them open."""

    count: int
    kind: str
    colour: str
    size: str | None
    place: str | None


@dataclass(frozen=True)
class WordClaim:
    """A word. level: top, centre or bottom. colour and level are None where the prompt leaves them open."""

    text: str
    colour: str | None
    level: str | None


@dataclass(frozen=True)
class Request:
    """A prompt for a new picture, and its claims about it. scene: one scene that fulfils the prompt."""

    prompt: str
    scene: Scene
    ground: str | None
    claims: tuple[Claim, ...]
    word: WordClaim | None


@dataclass(frozen=True)
class Edit:
    """A prompt for a change. kind: one of EDITS. references: in order. into: the reference that changes. scene: the result.

    free: the shape of `scene` whose position the prompt leaves open; place: the part of the picture that it must be in, if any.
    """

    kind: str
    prompt: str
    references: tuple[Scene, ...]
    into: Scene
    scene: Scene
    free: Shape | None = None
    place: str | None = None


@cache
def _phrases() -> dict:
    return json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


def phrases(language: str) -> list[str]:
    """All phrases of which captions in a language are made."""

    def texts(part) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [text for inner in (part.values() if isinstance(part, dict) else part) for text in texts(inner)]

    return texts(_phrases()[language])


def vocabulary() -> list[str]:
    """The words of all captions, as a checkpoint states them: see glm_image/trained_on.py."""
    texts = (re.sub("{.*?}", " ", phrase) for language in LANGUAGES for phrase in phrases(language))
    return sorted({AN, *(word for text in texts for word in words_of(text))})


def describe(rng: random.Random, scene: Scene, language: str) -> Request:
    """A request for a scene that leaves some of its properties open."""
    phrases = _phrases()[language]
    groups: dict[tuple[str, str, str], list[Shape]] = {}
    for shape in scene.shapes:
        groups.setdefault((shape.kind, shape.colour, shape.size), []).append(shape)
    claims = []
    for (kind, colour, size), shapes in groups.items():
        place = scene.place_of(shapes[0]) if len(shapes) == 1 and _names_place(rng, scene, shapes[0]) else None
        stated_size = size if rng.random() < 0.6 else None
        claims.append(Claim(len(shapes), kind, colour, size=stated_size, place=place))
    word = None
    if scene.word is not None:
        colour = scene.word.colour if rng.random() < 0.6 else None
        level = scene.level_of(scene.word) if rng.random() < 0.6 else None  # words are too long for left and right
        word = WordClaim(scene.word.text, colour, level)
    things = [_say_claim(rng, phrases, claim) for claim in claims] + ([_say_word(rng, phrases, word)] if word else [])
    rng.shuffle(things)
    ground = scene.ground if rng.random() < 0.92 else None
    listed = _listed(rng, phrases["lists"], things)
    template = rng.choice(phrases["picture"]["plain" if ground is None else "grounded"])
    prompt = template.format(things=listed, ground=phrases["colours"].get(ground, ""))
    return Request(_sentence(rng, prompt, language), scene, ground=ground, claims=tuple(claims), word=word)


def _names_place(rng: random.Random, scene: Scene, shape: Shape) -> bool:
    """Whether a caption says where a shape is: always unless it is at the centre level, where shapes stand by default."""
    return scene.level_of(shape) != "centre" or rng.random() < 0.5


def _listed(rng: random.Random, phrases: dict, things: Sequence[str]) -> str:
    *first, last = things
    return rng.choice(phrases["comma"]).join(first) + (rng.choice(phrases["last"]) if first else "") + last


def _say_claim(rng: random.Random, phrases: dict, claim: Claim) -> str:
    template = rng.choice(phrases["shape"]["plain" if claim.place is None else "placed"])
    return template.format(
        number=rng.choice(phrases["numbers"][str(claim.count)]),
        size=rng.choice(phrases["sizes"][claim.size]) if claim.size else "",
        colour=phrases["colours"][claim.colour],
        kind=phrases["kinds"][claim.kind][claim.count > 1],
        place=rng.choice(phrases["places"][claim.place]) if claim.place else "",
    )


def _say_word(rng: random.Random, phrases: dict, word: WordClaim) -> str:
    variant = " ".join(name for name, value in (("coloured", word.colour), ("placed", word.level)) if value) or "plain"
    return rng.choice(phrases["word"][variant]).format(
        text=word.text,
        colour=phrases["colours"].get(word.colour, ""),
        place=rng.choice(phrases["places"][word.level]) if word.level else "",
    )


def _sentence(rng: random.Random, text: str, language: str) -> str:
    """A text with single spaces, at random with a capital letter and a full stop."""
    text = " ".join(text.split()).replace("a orange", f"{AN} orange")
    if language == "en" and rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.5:
        text += {"en": ".", "zh": "\u3002"}[language]
    return text


COMBINATIONS = ("first into second", "second into first")
EDITS = ("recolour", "move", "add", "remove", "word", "ground", *COMBINATIONS)


def random_edit(
    rng: random.Random,
    rows: int,
    columns: int,
    language: str,
    *,
    kind: str | None = None,
    anywhere: bool = False,
    with_word: float = 0.35,
) -> Edit:
    """A random edit, of a random kind by default. Scenes are drawn until one allows it.

    anywhere, with_word: as `random_scene` has them, of the scene that changes; an edit of a word always has one.
    """
    kind = kind or rng.choice(EDITS)
    while True:
        scene = random_scene(rng, rows, columns, with_word=1.0 if kind == "word" else with_word, anywhere=anywhere)
        edit = _MAKERS[kind](rng, scene, _phrases()[language])
        if edit is not None:
            return replace(edit, prompt=_sentence(rng, edit.prompt, language))


def _name(rng: random.Random, phrases: dict, shape: Shape, others: Sequence[Shape]) -> str | None:
    """A phrase that names one shape and none of the others; None where there is no such phrase."""
    alike = [other for other in others if other is not shape and other.kind == shape.kind]
    if any(other.colour == shape.colour for other in alike):
        return None
    template = rng.choice(phrases["object"]["colour and kind" if alike or rng.random() < 0.5 else "kind"])
    return template.format(colour=phrases["colours"][shape.colour], kind=phrases["kinds"][shape.kind][0])


def _named(rng: random.Random, phrases: dict, scene: Scene) -> tuple[Shape, str] | None:
    if not scene.shapes:
        return None
    shape = rng.choice(scene.shapes)
    name = _name(rng, phrases, shape, scene.shapes)
    return None if name is None else (shape, name)


def _without(scene: Scene, shape: Shape) -> Scene:
    return replace(scene, shapes=tuple(other for other in scene.shapes if other is not shape))


def _template(rng: random.Random, phrases: dict, kind: str) -> str:
    return rng.choice(phrases["edits"][kind])


def _recolour(rng, scene, phrases):
    if (named := _named(rng, phrases, scene)) is None:
        return None
    shape, name = named
    colour = other_colour(rng, scene.ground, shape.colour)
    target = replace(scene, shapes=tuple(replace(s, colour=colour) if s is shape else s for s in scene.shapes))
    prompt = _template(rng, phrases, "recolour").format(object=name, colour=phrases["colours"][colour])
    return Edit("recolour", prompt, (scene,), into=scene, scene=target)


def _move(rng, scene, phrases):
    if (named := _named(rng, phrases, scene)) is None:
        return None
    shape, name = named
    place = rng.choice([place for place in PLACES if place != scene.place_of(shape)])
    target = with_thing(rng, _without(scene, shape), shape, place)
    if target is None:
        return None
    prompt = _template(rng, phrases, "move").format(object=name, way=rng.choice(phrases["ways"][place]))
    return Edit("move", prompt, (scene,), into=scene, scene=target, free=target.shapes[-1], place=place)


def _add(rng, scene, phrases):
    shape = Shape(rng.choice(KINDS), other_colour(rng, scene.ground), rng.choice(list(SPANS)))
    if any((shape.kind, shape.colour) == (other.kind, other.colour) for other in scene.shapes):
        return None
    place = rng.choice((None, *PLACES))
    target = with_thing(rng, scene, shape, place)
    if target is None:
        return None
    shape_phrase = _say_claim(rng, phrases, Claim(1, shape.kind, shape.colour, size=shape.size, place=place))
    prompt = _template(rng, phrases, "add").format(shape=shape_phrase)
    return Edit("add", prompt, (scene,), into=scene, scene=target, free=target.shapes[-1], place=place)


def add_phrase(rng: random.Random, language: str, shape: Shape, place: str) -> str:
    """A prompt that adds a shape at a place, one of PLACES."""
    phrases = _phrases()[language]
    said = _say_claim(rng, phrases, Claim(1, shape.kind, shape.colour, size=shape.size, place=place))
    return _sentence(rng, _template(rng, phrases, "add").format(shape=said), language)


def _remove(rng, scene, phrases):
    if len(scene.things) < 2 or (named := _named(rng, phrases, scene)) is None:
        return None
    shape, name = named
    prompt = _template(rng, phrases, "remove").format(object=name)
    return Edit("remove", prompt, (scene,), into=scene, scene=_without(scene, shape))


def _word(rng, scene, phrases):
    if scene.word is None:
        return None
    text = random_word(rng, min(LONGEST_WORD, scene.columns))
    if text == scene.word.text:
        return None
    column = min(scene.word.column, scene.columns - len(text))  # starts where the old one did, if there is room
    target = replace(scene, word=Word(text, scene.word.colour, scene.word.row, column))
    if not target.is_free(target.word, target.shapes):
        return None
    prompt = _template(rng, phrases, "word").format(text=text)
    return Edit("word", prompt, (scene,), into=scene, scene=target)


def _ground(rng, scene, phrases):
    ground = other_ground(rng, scene)
    prompt = _template(rng, phrases, "ground").format(ground=phrases["colours"][ground])
    return Edit("ground", prompt, (scene,), into=scene, scene=replace(scene, ground=ground))


def _combine(kind):
    """The maker of an edit that copies a shape of one reference to the same position in the other."""

    def make(rng, into, phrases):
        source = random_scene(rng, into.rows, into.columns, with_word=0.2)
        if (named := _named(rng, phrases, source)) is None:
            return None
        shape, name = named
        if shape.colour == into.ground or not into.is_free(shape, into.things):
            return None
        references = (source, into) if kind == "first into second" else (into, source)
        target = replace(into, shapes=(*into.shapes, shape))
        prompt = _template(rng, phrases, kind).format(object=name)
        return Edit(kind, prompt, references, into=into, scene=target)

    return make


_MAKERS = {
    "recolour": _recolour,
    "move": _move,
    "add": _add,
    "remove": _remove,
    "word": _word,
    "ground": _ground,
    "first into second": _combine("first into second"),
    "second into first": _combine("second into first"),
}
