"""Trains nano's DiT together with its glyph encoder, to paint scenes from their tokens.

Priors are dropped now and then, as the negative side of the guidance has it. References go through the DiT at t = 0 and are
read as keys and values, as in denoise.py.
"""

import math
import random
from functools import partial
from typing import NamedTuple

import torch

from ..glmimage_core.denoise import Dit, ReferenceLayer, rope
from ..glmimage_core.geometry import MIN_SIDE, prior_for_dit
from ..glmimage_core.glyphs import GlyphEncoder
from ..glmimage_core.vae import Vae
from .captions import EDITS, random_edit
from .drawing import draw
from .loop import Plan
from .structure import looks, structured
from .world import (
    CELL_PX,
    COLOURS,
    LONGEST_WORD,
    PATTERNS,
    Scene,
    Word,
    letter_slot,
    other_colour,
    random_letters,
    random_scene,
    tokens_of,
)

PLAN = Plan(steps=2000, rate=3e-3, warmup=100)
LETTERS_PLAN = Plan(steps=1400, rate=2.5e-3, warmup=30)
LETTERS_BLOCK, LETTERS_HEAD = 0, 0
SCENES = 7  # of a batch
DRAWS = 3  # noise and time for each of them
SIDES = (8, 8, 6, 7, 10, 12)  # cells
STRIPS = 24  # of a batch: pictures of two rows with nothing but a word
DROPPED = 0.12  # of the priors
STRENGTH = 10.0  # of fitted queries and keys, which are normalised after: the greater, the more slowly they are forgotten


class Lesson(NamedTuple):
    """Pictures of one size with glyph texts of one length, each with the same number of references of that size."""

    scenes: list[Scene]
    texts: list[str]
    references: list[tuple[Scene, ...]]


@torch.no_grad()
def prepare(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae) -> None:
    """First weights: a token's is what its cell looks like and what it has in common with others; gates are half open.

    The first heads look at neighbours, those of the glyph encoder ahead.
    """
    model = dit.model
    table = model.prior_token_embedding.weight
    table.copy_(looks(partial(latents_of_scenes, dit, vae), table.shape[1]) + 0.5 * structured(table.shape[1], seed=2))
    for block in model.transformer_blocks:
        linear = block.norm1.linear
        linear.weight.mul_(0.2)
        linear.bias.zero_()
        width = linear.bias.numel() // 12
        for gate in (4, 5, 10, 11):  # of attention and feed-forward, picture and text
            linear.bias[gate * width : (gate + 1) * width] = 0.5
    for block in model.transformer_blocks[:2]:
        for head, (row, column) in enumerate([(0, -1), (-1, 0)]):
            look_beside(block.attn1, head, row, column)
    look_ahead(glyph_encoder)
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)


@torch.no_grad()
def look_beside(attention, head: int, row: int, column: int) -> None:
    """Have a head begin by looking at the neighbour so many DiT tokens below and to the right.

    A prior token is the same for four DiT tokens; which of the four one is, its neighbours tell. Queries and keys are the same
    everywhere, with all their length in the two fastest rotations of each axis, and the keys turned so that they meet there.
    """
    width = attention.to_q.out_features // attention.heads
    query, key = torch.zeros(width), torch.zeros(width)
    half, quarter = width // 2, width // 4  # pairs are (i, i + half); the first quarter turns with rows, the second with columns
    for first, step in ((0, row), (quarter, column)):
        for pair, length in enumerate((1.0, 0.65)):
            turn = step * 10000.0 ** (-2 * pair / half)
            query[first + pair] = length
            key[first + pair], key[first + pair + half] = length * math.cos(turn), -length * math.sin(turn)
    rows = slice(head * width, (head + 1) * width)
    for linear, vector in ((attention.to_q, query), (attention.to_k, key)):
        linear.weight[rows] *= 0.1
        linear.bias[rows] = 4 * vector


@torch.no_grad()
def look_ahead(glyph_encoder: GlyphEncoder) -> None:
    """Have each head begin by looking one byte further ahead than the one before, or at the end mark where that is nearer.

    So a byte learns how far the end is, which is what a letter's prior token says of its place. All layers share the biases.
    """
    biases = glyph_encoder.model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    buckets, heads = biases.shape
    exact = buckets // 4  # distances with a bucket of their own, behind and ahead
    biases.fill_(-4.0 * exact)
    for head in range(heads):
        for ahead in range(exact):
            biases[ahead + (buckets // 2 if ahead else 0), head] = -4.0 * abs(head + 1 - ahead)


def but_for_letters(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a DiT without those through which glyph embeddings enter."""
    return {name: weight for name, weight in weights.items() if not name.startswith("glyph_projector.")}


@torch.no_grad()
def prepare_letters(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae) -> None:
    """Weights of a DiT that paints shapes, with a head that looks at the letters; what finds them does not change any more.

    Left to itself training turns that head away before it has learned to use what it sees.
    """
    model = dit.model
    attention = model.transformer_blocks[LETTERS_BLOCK].attn1
    width = attention.to_q.out_features // attention.heads
    rows = slice(LETTERS_HEAD * width, (LETTERS_HEAD + 1) * width)
    torch.nn.init.normal_(attention.to_v.weight[rows], std=attention.to_v.in_features**-0.5)
    torch.nn.init.zeros_(attention.to_v.bias[rows])
    torch.nn.init.normal_(attention.to_out[0].weight[:, rows], std=width**-0.5)
    match_letters(dit, glyph_encoder, vae, LETTERS_BLOCK, LETTERS_HEAD)
    inputs = model.image_projector, model.prior_token_embedding, model.prior_projector, model.glyph_projector
    entrances = (*inputs, model.time_condition_embed)
    before = model.transformer_blocks[: LETTERS_BLOCK + 1]
    for module in (glyph_encoder.model, *entrances, *(block.norm1 for block in before), attention.to_q, attention.to_k):
        module.requires_grad_(False)


@torch.no_grad()
def match_letters(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, block: int, head: int) -> float:
    """Have a head look from where a letter is to stand at the letter's glyph embedding, which takes long to be found otherwise.

    A letter's prior token says how many letters follow, and so does, by way of `look_ahead`, a byte's glyph embedding: queries
    and keys are fitted by least squares, from what enters the block, to codes for that number. They lie where rotations are
    slowest, since texts are not rotated. Returns the share of letters' queries nearest to their code, times that of keys.
    """
    attention = dit.model.transformer_blocks[block].attn1
    width = attention.to_q.out_features // attention.heads
    codes = torch.zeros(LONGEST_WORD + 3, width)  # the last ones: a query that is no letter's, keys of the picture, of the end
    for index, code in enumerate(codes):
        for axis in range(2):
            pair = width // 4 * (axis + 1) - 1 - index  # pairs are (i, i + width / 2); each quarter turns with one axis
            code[pair], code[pair + width // 2] = STRENGTH, -STRENGTH
    elsewhere, picture, end = range(LONGEST_WORD, len(codes))

    entering: list[torch.Tensor] = []
    hook = attention.to_q.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0].float()))
    states, queries, keys = [], [], []
    rng, generator = random.Random("letters"), torch.Generator().manual_seed(0)
    for letters in [*range(1, LONGEST_WORD + 1)] * 2:
        lesson = _pictures(rng, 8, 8, letters)
        lesson_loss(dit, glyph_encoder, vae, lesson, generator)
        tokens = torch.stack([tokens_of(scene) for scene in lesson.scenes])
        slots = torch.where(_are_letters(tokens), _patterns(tokens) - letter_slot(0), elsewhere)
        of_image = prior_for_dit(slots).repeat_interleave(DRAWS, 0)
        of_text = torch.tensor([*reversed(range(letters)), end]).expand(len(of_image), -1)
        states.append(entering.pop().flatten(0, 1))
        queries.append(torch.cat([torch.full_like(of_text, elsewhere), of_image], dim=1).flatten())
        keys.append(torch.cat([of_text, torch.full_like(of_image, picture)], dim=1).flatten())
    hook.remove()
    x = torch.cat(states).cpu()
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    rows = slice(head * width, (head + 1) * width)
    share = 1.0
    for linear, wanted in ((attention.to_q, torch.cat(queries)), (attention.to_k, torch.cat(keys))):
        count = torch.bincount(wanted, minlength=len(codes)).clamp(min=1)
        weighted = x / count[wanted, None]
        fit = torch.linalg.solve(weighted.T @ x + 1e-4 * torch.eye(x.shape[1]), weighted.T @ codes[wanted])
        linear.weight[rows], linear.bias[rows] = fit[:-1].T.to(linear.weight), fit[-1].to(linear.bias)
        of_letters = wanted < LONGEST_WORD
        share *= ((x @ fit @ codes.T).argmax(1) == wanted)[of_letters].float().mean().item()
    return share


def random_lesson(rng: random.Random) -> Lesson:
    rows, columns = (8, 8) if rng.random() < 0.6 else (rng.choice(SIDES), rng.choice(SIDES))
    letters = rng.choice((0, 1, 2, 3, 4, 5, 6, min(LONGEST_WORD, columns)))
    if rng.random() < 0.65:
        return _pictures(rng, rows, columns, letters)
    kind = rng.choice(EDITS)
    return _edits(rng, rows, columns, kind, letters or 3)


def _pictures(rng: random.Random, rows: int, columns: int, letters: int) -> Lesson:
    scenes: list[Scene] = []
    while len(scenes) < SCENES:
        scene = random_scene(rng, rows, columns, with_word=float(letters > 0), anywhere=True)
        if (len(scene.word.text) if scene.word else 0) == letters:
            scenes.append(scene)
    return Lesson(scenes, [scene.word.text if scene.word else "" for scene in scenes], [()] * SCENES)


def _edits(rng: random.Random, rows: int, columns: int, kind: str, letters: int) -> Lesson:
    edits = []
    while len(edits) < SCENES:
        edit = random_edit(rng, rows, columns, "en", kind, anywhere=True)
        if kind != "word" or len(edit.scene.word.text) == letters:
            edits.append(edit)
    texts = [edit.scene.word.text if kind == "word" else "" for edit in edits]
    return Lesson([edit.scene for edit in edits], texts, [edit.references for edit in edits])


def random_strips(rng: random.Random) -> Lesson:
    """Words alone: as many letters as in many whole pictures."""
    letters = rng.randint(1, LONGEST_WORD)
    columns = letters + rng.randint(0, 2)
    words = [random_letters(rng, letters) for _ in range(STRIPS)]
    scenes = []
    for text in words:
        ground = rng.choice(list(COLOURS))
        word = Word(text, other_colour(rng, ground), rng.randrange(2), rng.randrange(columns - letters + 1))
        scenes.append(Scene(2, columns, ground, word=word))
    return Lesson(scenes, words, [()] * STRIPS)


class _Written:
    """Takes keys and values where they are made, with their gradients."""

    mode = "write"

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys_values = keys, values


def loss_of(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return lesson_loss(dit, glyph_encoder, vae, random_lesson(rng), generator)


def loss_of_letters(
    dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, rng: random.Random, generator: torch.Generator
) -> torch.Tensor:
    lesson = random_strips(rng) if rng.random() < 0.7 else random_lesson(rng)
    return lesson_loss(dit, glyph_encoder, vae, lesson, generator)


def lesson_loss(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, lesson: Lesson, generator: torch.Generator) -> torch.Tensor:
    """Mean square error of the velocity, in which letters and shapes count more than bare ground."""
    device, model = dit.device, dit.model
    width, height = lesson.scenes[0].columns * CELL_PX, lesson.scenes[0].rows * CELL_PX
    latents = latents_of_scenes(dit, vae, lesson.scenes).repeat_interleave(DRAWS, 0)
    tokens = torch.stack([tokens_of(scene) for scene in lesson.scenes]).to(device)
    batch = len(latents)

    u = torch.rand(2, batch, generator=generator).amax(dim=0).to(device)  # of the run, before the shift; its start counts most
    told = (width, height) if height >= MIN_SIDE else (256, 256)  # a strip counts as a piece of a picture
    shift = dit.shift.of_size(*told)
    sigma = (shift * u / (shift * u + 1 - u)).view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        caches = written_references(dit, vae, lesson.references, width, height)
        states = model.prior_states(prior_for_dit(tokens)).repeat_interleave(DRAWS, 0)
        if caches is None:
            dropped = (torch.rand(batch, generator=generator) < DROPPED).to(device).view(-1, 1, 1)
            states = torch.where(dropped, model.dropped_prior_state(device), states)
        ids = glyph_encoder.tokenizer(lesson.texts, return_tensors="pt").input_ids.to(device)
        glyphs = model.glyph_states(glyph_encoder.model(ids).last_hidden_state).repeat_interleave(DRAWS, 0)
        time = model.time_states(u * 1000 - 1, *told, torch.float32)
        noised = sigma * noise + (1 - sigma) * latents
        velocity = model(noised, time, states, glyphs, rope(dit, width, height), caches)
    weights = _weights(tokens).repeat_interleave(DRAWS, 0)
    return (weights * (velocity.float() - (noise - latents)).square()).mean() / weights.mean()


@torch.no_grad()
def latents_of_scenes(dit: Dit, vae: Vae, scenes: list[Scene]) -> torch.Tensor:
    """Drawn and encoded, in the DiT's space: [scenes, 16, h, w] float32."""
    pictures = torch.stack([draw(scene) for scene in scenes]).movedim(-1, 1).to(vae.device) * 2 - 1
    with torch.autocast(vae.device.type, torch.bfloat16):
        latents = vae.model.encode(pictures).latent_dist.mode()
    return dit.space.normalise(latents.float())


def written_references(
    dit: Dit, vae: Vae, references: list[tuple[Scene, ...]], width: int, height: int
) -> list[ReferenceLayer] | None:
    """The references of each picture, DRAWS times each, ready to be read; width and height are theirs. None without any."""
    written = []
    model = dit.model
    for scenes in zip(*references, strict=True):
        cache = [_Written() for _ in model.transformer_blocks]
        prior = model.prior_states(prior_for_dit(torch.stack([tokens_of(scene) for scene in scenes]).to(dit.device)))
        no_text = model.glyph_states(torch.empty(len(scenes), 0, model.config.text_embed_dim, device=dit.device))
        time = model.time_states(torch.zeros(len(scenes), device=dit.device), width, height, torch.float32)
        model(latents_of_scenes(dit, vae, list(scenes)), time, prior, no_text, rope(dit, width, height), cache)
        written.append([tuple(part.repeat_interleave(DRAWS, 0) for part in layer.keys_values) for layer in cache])
    return [ReferenceLayer(layers) for layers in zip(*written, strict=True)] if written else None


def _weights(tokens: torch.Tensor) -> torch.Tensor:
    """What each latent cell counts, [B, 1, h, w]: bare ground 1, shapes 2, letters 4."""
    weights = torch.where(tokens < len(COLOURS), 1.0, torch.where(_are_letters(tokens), 4.0, 2.0))
    return weights.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]


def _patterns(tokens: torch.Tensor) -> torch.Tensor:
    """The pattern of each token that is not bare ground."""
    return (tokens - len(COLOURS)) % PATTERNS


def _are_letters(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens >= len(COLOURS)) & (_patterns(tokens) >= letter_slot(0))
