"""Teaches nano letters: first its glyph encoder and one head of the DiT to find them, then the DiT to paint them.

A letter's prior token says how many letters follow, and a byte of the glyph text can tell how far the end mark is. Both have to
meet in one head before any letter is right. From the error of the picture alone that takes longer than all else together, and
the heads turn away from letters before they can read them: so this head is taught by where it looks, and kept as it is after.
"""

import random

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from ..glmimage_core.glm_image.dit import Dit, rope
from ..glmimage_core.glm_image.geometry import prior_for_dit
from ..glmimage_core.glm_image.glyphs import GlyphEncoder
from ..glmimage_core.vae import Vae
from .dit import DRAWS, Lesson, lesson_loss, random_lesson
from .loop import Plan
from .world import ALPHABET, CELL_PX, COLOURS, LONGEST_WORD, Scene, Word, letters_after, other_colour, random_letters

GLYPHS_PLAN = Plan(steps=600, rate=3e-3, warmup=20)
PLAN = Plan(steps=2200, rate=2.5e-3, warmup=30)
HEAD = 0  # of the first block
STRIPS = 24  # of a batch: pictures of two rows with nothing but a word
READ, LEFT_ALONE = 0.3, 0.2  # what the bytes' names count, and that nothing but a letter looks at the text


def reader(dit: Dit) -> Linear:
    """Names a byte by what enters the first block: [..., width] to [..., letters of the alphabet]."""
    return Linear(dit.model.transformer_blocks[0].attn1.to_q.in_features, len(ALPHABET))


@torch.no_grad()
def freeze_all_but_the_finder(dit: Dit) -> None:
    """Of a DiT with its first block only. What says which thing a cell shows changes a little with it."""
    model = dit.model
    attention = model.transformer_blocks[0].attn1
    model.requires_grad_(False)
    for module in (model.glyph_projector, model.prior_token_embedding, model.prior_projector, attention.to_q, attention.to_k):
        module.requires_grad_(True)


@torch.no_grad()
def freeze_the_finder(dit: Dit, glyph_encoder: GlyphEncoder) -> None:
    """And let the head say what it finds: its values begin anew."""
    model = dit.model
    block = model.transformer_blocks[0]
    attention = block.attn1
    rows = _rows_of_head(attention)
    torch.nn.init.normal_(attention.to_v.weight[rows], std=attention.to_v.in_features**-0.5)
    torch.nn.init.zeros_(attention.to_v.bias[rows])
    torch.nn.init.normal_(attention.to_out[0].weight[:, rows], std=attention.to_v.out_features**-0.5)
    inputs = model.image_projector, model.prior_token_embedding, model.prior_projector, model.glyph_projector
    for module in (glyph_encoder.model, *inputs, model.time_condition_embed, block.norm1, attention.to_q, attention.to_k):
        module.requires_grad_(False)


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


def random_words(rng: random.Random) -> Lesson:
    """Words alone, or whole pictures without references in which one may stand."""
    while True:
        lesson = random_strips(rng) if rng.random() < 0.5 else random_lesson(rng)
        if lesson.texts[0] and not lesson.references[0]:
            return lesson


def loss_of_glyphs(
    byte_reader: Linear, dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, rng: random.Random, generator: torch.Generator
) -> torch.Tensor:
    """Cross entropy of where the head looks from each letter's places, and of the bytes' names; other places look elsewhere."""
    lesson = random_words(rng)
    scores, states = head_scores(dit, glyph_encoder, vae, lesson, generator)
    letters = len(lesson.texts[0])
    after = prior_for_dit(torch.stack([letters_after(scene) for scene in lesson.scenes])).repeat_interleave(DRAWS, 0)
    after = after.to(scores.device)
    wanted, of_letter = letters - 1 - after, after >= 0
    texts = letters + 1  # with the end mark
    beside = scores[..., texts:].logsumexp(-1) - scores.logsumexp(-1)
    named = torch.tensor([[ALPHABET.index(letter) for letter in text] for text in lesson.texts], device=scores.device)
    return (
        cross_entropy(scores[of_letter], wanted[of_letter])
        - LEFT_ALONE * beside[~of_letter].mean()
        + READ * cross_entropy(byte_reader(states[:, :letters]).movedim(-1, 1), named.repeat_interleave(DRAWS, 0))
    )


def head_scores(
    dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, lesson: Lesson, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the head, [B, image tokens, all tokens] (texts come first), and what enters its block, [B, all tokens, width]."""
    attention = dit.model.transformer_blocks[0].attn1
    entering: list[torch.Tensor] = []
    hook = attention.to_q.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0].float()))
    lesson_loss(dit, glyph_encoder, vae, lesson, generator, dropped=0)
    hook.remove()
    (states,) = entering
    rows, texts = _rows_of_head(attention), len(lesson.texts[0]) + 1
    turns = rope(dit, lesson.scenes[0].columns * CELL_PX, lesson.scenes[0].rows * CELL_PX)

    def turned(linear: Linear, norm: torch.nn.Module) -> torch.Tensor:
        vectors = norm(torch.nn.functional.linear(states, linear.weight[rows], linear.bias[rows]))[:, :, None]
        image = apply_rotary_emb(vectors[:, texts:], turns, sequence_dim=1, use_real_unbind_dim=-2)
        return torch.cat([vectors[:, :texts], image], dim=1)[:, :, 0]

    queries, keys = turned(attention.to_q, attention.norm_q), turned(attention.to_k, attention.norm_k)
    return queries[:, texts:] @ keys.mT * keys.shape[-1] ** -0.5, states


def loss_of(dit: Dit, glyph_encoder: GlyphEncoder, vae: Vae, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    lesson = random_strips(rng) if rng.random() < 0.65 else random_lesson(rng)
    return lesson_loss(dit, glyph_encoder, vae, lesson, generator)


def _rows_of_head(attention) -> slice:
    width = attention.to_q.out_features // attention.heads
    return slice(HEAD * width, (HEAD + 1) * width)
