"""The phases glyphs and letters: nano learns to write words.

The prior token of a letter says how many letters follow it. The glyph encoder gives an embedding for each byte of the word. To
paint the right letter, the DiT must find the byte that has as many bytes after it. One head of its first block does that, the
*finder*.

The error of the picture alone teaches this very slowly: until some head finds the right byte, the text is noise, and all heads
learn to ignore it. So the phase glyphs first trains the finder on where it should look. The phase letters then freezes it and
trains the rest of the DiT to paint what the finder reads.
"""

import random

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from ..glmimage_core.glm_image.dit import Dit, rope
from ..glmimage_core.glm_image.geometry import prior_for_dit
from .dit import DRAWS, DitModels, Lesson, lesson_loss
from .dit import random_lesson as random_dit_lesson
from .loop import Recipe
from .world import ALPHABET, CELL_PX, COLOURS, LONGEST_WORD, Scene, Word, letters_after, other_colour, random_letters

FINDER_RECIPE = Recipe(steps=600, learning_rate=3e-3, warmup=20)
RECIPE = Recipe(steps=2200, learning_rate=2.5e-3, warmup=30)
HEAD = 0  # the finder, in the first block
STRIPS = 24  # in a batch: scenes of two rows of cells that show only a word
LETTER_WEIGHT = 0.3  # of naming the letters, in the loss of the finder
ELSEWHERE_WEIGHT = 0.2  # of keeping all other queries off the text


def letter_classifier(dit: Dit) -> Linear:
    """A linear layer that names a letter from the state of its byte: [..., width] -> [..., letters of the alphabet]."""
    return Linear(dit.model.transformer_blocks[0].attn1.to_q.in_features, len(ALPHABET))


@torch.no_grad()
def freeze_all_but_the_finder(dit: Dit) -> None:
    """Freeze a DiT of one block except what its first block's attention scores depend on.

    The prior embedding stays trainable too: a letter's token has to say its place in a way that a query can use.
    """
    model = dit.model
    attention = model.transformer_blocks[0].attn1
    model.requires_grad_(False)
    for module in (model.glyph_projector, model.prior_token_embedding, model.prior_projector, attention.to_q, attention.to_k):
        module.requires_grad_(True)


@torch.no_grad()
def freeze_the_finder(models: DitModels) -> None:
    """Freeze everything that decides where the finder looks."""
    model = models.dit.model
    block = model.transformer_blocks[0]
    attention = block.attn1
    inputs = model.image_projector, model.prior_token_embedding, model.prior_projector, model.glyph_projector
    frozen = models.glyph_encoder.model, *inputs, model.time_condition_embed, block.norm1, attention.to_q, attention.to_k
    for module in frozen:
        module.requires_grad_(False)


@torch.no_grad()
def init_what_the_finder_reads(dit: Dit) -> None:
    """Give the finder new random values: rows of to_v and columns of to_out, which carry what it finds into the picture."""
    attention = dit.model.transformer_blocks[0].attn1
    rows = _finder_rows(attention)
    torch.nn.init.normal_(attention.to_v.weight[rows], std=attention.to_v.in_features**-0.5)
    torch.nn.init.zeros_(attention.to_v.bias[rows])
    torch.nn.init.normal_(attention.to_out[0].weight[:, rows], std=attention.to_v.out_features**-0.5)


def random_strips(rng: random.Random) -> Lesson:
    """A batch of words alone: as many letters as in a much larger batch of whole pictures."""
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
    """A batch with words and without references: strips, or whole pictures."""
    while True:
        lesson = random_strips(rng) if rng.random() < 0.5 else random_dit_lesson(rng)
        if lesson.texts[0] and not lesson.references[0]:
            return lesson


def finder_loss(models: DitModels, classifier: Linear, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """The loss of the phase glyphs, on a random batch of words.

    1. Cross entropy of the finder's attention: a query in a letter's cell should look at that letter's byte.
    2. Queries everywhere else should look away from the text.
    3. Cross entropy of the classifier: the state of a byte should tell which letter it is.
    """
    lesson = random_words(rng)
    scores, states = finder_scores(models, lesson, generator)
    letters = len(lesson.texts[0])
    text_tokens = letters + 1  # with the end mark
    after = prior_for_dit(torch.stack([letters_after(scene) for scene in lesson.scenes])).repeat_interleave(DRAWS, 0)
    after = after.to(scores.device)
    byte, in_letter = letters - 1 - after, after >= 0
    look_away = scores[..., text_tokens:].logsumexp(-1) - scores.logsumexp(-1)  # log of the attention on the picture
    letter_ids = torch.tensor([[ALPHABET.index(letter) for letter in text] for text in lesson.texts], device=scores.device)
    letter_logits = classifier(states[:, :letters]).movedim(-1, 1)  # [B, alphabet, letters]
    return (
        cross_entropy(scores[in_letter], byte[in_letter])
        - ELSEWHERE_WEIGHT * look_away[~in_letter].mean()
        + LETTER_WEIGHT * cross_entropy(letter_logits, letter_ids.repeat_interleave(DRAWS, 0))
    )


def finder_scores(models: DitModels, lesson: Lesson, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The finder's attention scores and the states that enter its block, in a forward pass over a batch.

    Scores are [B, image tokens, all tokens], states [B, all tokens, width]; text tokens come first.
    """
    dit = models.dit
    attention = dit.model.transformer_blocks[0].attn1
    entering: list[torch.Tensor] = []
    hook = attention.to_q.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0].float()))
    lesson_loss(models, lesson, generator, prior_dropout=0)
    hook.remove()
    (states,) = entering
    rows, text_tokens = _finder_rows(attention), len(lesson.texts[0]) + 1
    rotary_emb = rope(dit, lesson.scenes[0].columns * CELL_PX, lesson.scenes[0].rows * CELL_PX)

    def project(linear: Linear, norm: torch.nn.Module) -> torch.Tensor:
        """Queries or keys of the head, [B, all tokens, head width]. Only those of the picture are rotated."""
        vectors = norm(torch.nn.functional.linear(states, linear.weight[rows], linear.bias[rows]))[:, :, None]
        image = apply_rotary_emb(vectors[:, text_tokens:], rotary_emb, sequence_dim=1, use_real_unbind_dim=-2)
        return torch.cat([vectors[:, :text_tokens], image], dim=1)[:, :, 0]

    queries, keys = project(attention.to_q, attention.norm_q), project(attention.to_k, attention.norm_k)
    return queries[:, text_tokens:] @ keys.mT * keys.shape[-1] ** -0.5, states


def random_lesson(rng: random.Random) -> Lesson:
    """A batch of the phase letters: mostly strips, or else one of the phase dit."""
    return random_strips(rng) if rng.random() < 0.65 else random_dit_lesson(rng)


def loss_of(models: DitModels, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return lesson_loss(models, random_lesson(rng), generator)


def _finder_rows(attention) -> slice:
    """The rows of the head in to_q, to_k and to_v."""
    width = attention.to_q.out_features // attention.heads
    return slice(HEAD * width, (HEAD + 1) * width)
