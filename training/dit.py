"""Trains nano's DiT together with its glyph encoder, to paint scenes from their tokens.

Priors are dropped now and then, as the negative side of the guidance has it. References go through the DiT at t = 0 and are
read as keys and values, as in denoise.py.
"""

import math
import random
from functools import partial
from typing import NamedTuple

import torch

from ..glmimage_core.glm_image.dit import Dit, rope
from ..glmimage_core.glm_image.geometry import MIN_SIDE, prior_for_dit
from ..glmimage_core.glm_image.glyphs import GlyphEncoder
from ..glmimage_core.glm_image.kv_cache import LayerKVCache
from ..glmimage_core.vae import Vae
from .captions import EDITS, random_edit
from .drawing import draw
from .loop import Plan
from .structure import looks, structured
from .world import CELL_PX, COLOURS, LONGEST_WORD, Scene, letters_after, random_scene, tokens_of

PLAN = Plan(steps=2000, rate=3e-3, warmup=100)
SCENES = 7  # of a batch
DRAWS = 3  # noise and time for each of them
SIDES = (8, 8, 6, 7, 10, 12)  # cells
DROPPED = 0.12  # of the priors


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


class _Written:
    """Takes keys and values where they are made, with their gradients."""

    mode = "write"

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys_values = keys, values


def loss_of(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return lesson_loss(dit, glyph_encoder, vae, random_lesson(rng), generator)


def lesson_loss(
    dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, lesson: Lesson, generator: torch.Generator, dropped: float = DROPPED
) -> torch.Tensor:
    """Mean square error of the velocity, in which letters and shapes count more than bare ground. dropped: of the priors."""
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
        states = model.embed_prior(prior_for_dit(tokens)).repeat_interleave(DRAWS, 0)
        if caches is None:
            without = (torch.rand(batch, generator=generator) < dropped).to(device).view(-1, 1, 1)
            states = torch.where(without, model.null_prior(device), states)
        ids = glyph_encoder.tokenizer(lesson.texts, return_tensors="pt").input_ids.to(device)
        glyphs = model.embed_glyphs(glyph_encoder.model(ids).last_hidden_state).repeat_interleave(DRAWS, 0)
        time = model.embed_time(u * 1000 - 1, *told, torch.float32)
        noised = sigma * noise + (1 - sigma) * latents
        velocity = model(
            noised,
            temb=time,
            prior_embeds=states,
            glyph_embeds=glyphs,
            image_rotary_emb=rope(dit, width, height),
            kv_caches=caches,
        )
    weights = _weights(lesson.scenes).repeat_interleave(DRAWS, 0).to(device)
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
) -> list[LayerKVCache] | None:
    """The references of each picture, DRAWS times each, ready to be read; width and height are theirs. None without any."""
    written = []
    model = dit.model
    for scenes in zip(*references, strict=True):
        cache = [_Written() for _ in model.transformer_blocks]
        prior = model.embed_prior(prior_for_dit(torch.stack([tokens_of(scene) for scene in scenes]).to(dit.device)))
        no_text = model.embed_glyphs(torch.empty(len(scenes), 0, model.config.text_embed_dim, device=dit.device))
        time = model.embed_time(torch.zeros(len(scenes), device=dit.device), width, height, torch.float32)
        model(
            latents_of_scenes(dit, vae, list(scenes)),
            temb=time,
            prior_embeds=prior,
            glyph_embeds=no_text,
            image_rotary_emb=rope(dit, width, height),
            kv_caches=cache,
        )
        written.append([tuple(part.repeat_interleave(DRAWS, 0) for part in layer.keys_values) for layer in cache])
    return [LayerKVCache(layers) for layers in zip(*written, strict=True)] if written else None


def _weights(scenes: list[Scene]) -> torch.Tensor:
    """What each latent cell counts, [B, 1, h, w]: bare ground 1, shapes 2, letters 4."""
    bare = torch.stack([tokens_of(scene) for scene in scenes]) < len(COLOURS)
    letters = torch.stack([letters_after(scene) for scene in scenes]) >= 0
    weights = torch.where(bare, 1.0, torch.where(letters, 4.0, 2.0))
    return weights.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
