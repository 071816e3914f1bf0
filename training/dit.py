"""The phase dit: nano's DiT and glyph encoder learn to paint scenes from their prior tokens.

Some priors are dropped, because the negative side of the guidance has none. References go through the DiT at t = 0, and the
pictures read their keys and values, as in reference_cache.py.
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
from .captions import EDITS, Edit, random_edit
from .drawing import draw
from .loop import Recipe, mixed_precision
from .structure import structured, table_of_looks
from .world import CELL_PX, COLOURS, LONGEST_WORD, Scene, letters_after, random_scene, tokens_of

RECIPE = Recipe(steps=2000, learning_rate=3e-3, warmup=100)
SCENES = 7  # in a batch
DRAWS = 3  # of noise and timestep for each scene of a batch
SHAPE_WEIGHT, LETTER_WEIGHT = 2.0, 4.0  # in the loss; bare ground has 1
SIDES = (8, 8, 6, 7, 10, 12)  # cells
PRIOR_DROPOUT = 0.12  # share of priors
STAYING_TEXT = 0.4  # share of batches of edits whose glyph text says the word that stays, as a user may


class DitModels(NamedTuple):
    """The DiT, and the models that give it glyph embeddings and latents."""

    dit: Dit
    glyph_encoder: GlyphEncoder
    vae: Vae


class Lesson(NamedTuple):
    """One batch: scenes of one size, a glyph text of one length for each, and equally many references of that size for each."""

    scenes: list[Scene]
    texts: list[str]
    references: list[tuple[Scene, ...]]

    @classmethod
    def of_edits(cls, edits: list[Edit], *, says_word: bool) -> "Lesson":
        """The results of edits. says_word: the glyph texts are their words, or else empty."""
        texts = [edit.scene.word.text if says_word else "" for edit in edits]
        return cls([edit.scene for edit in edits], texts, [edit.references for edit in edits])


@torch.no_grad()
def init_weights(models: DitModels) -> None:
    """Initial weights.

    - The embedding of a prior token says what its cell looks like and which properties it shares with others.
    - The gates of AdaLN start at 0.5; the model's output starts at zero.
    - The first two heads of the first two blocks attend to the left and the upper neighbour (`init_neighbour_attention`).
    - The heads of the glyph encoder attend to the letters ahead (`init_attention_ahead`).
    """
    model = models.dit.model
    table = model.prior_token_embedding.weight
    looks = table_of_looks(partial(latents_of_scenes, models.dit, models.vae), table.shape[1])
    table.copy_(looks + 0.5 * structured(table.shape[1], seed=2))
    for block in model.transformer_blocks:
        linear = block.norm1.linear
        linear.weight.mul_(0.2)
        linear.bias.zero_()
        width = linear.bias.numel() // 12
        for gate in (4, 5, 10, 11):  # of attention and feed-forward, picture and text
            linear.bias[gate * width : (gate + 1) * width] = 0.5
    for block in model.transformer_blocks[:2]:
        for head, (row, column) in enumerate([(0, -1), (-1, 0)]):
            init_neighbour_attention(block.attn1, head, row, column)
    init_attention_ahead(models.glyph_encoder)
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)


@torch.no_grad()
def init_neighbour_attention(attention, head: int, row: int, column: int) -> None:
    """Initialise a head to attend to the DiT token `row` below and `column` to the right of a query.

    One prior token conditions a square of 2 x 2 DiT tokens; only its neighbours tell a DiT token which of the four it is. The
    head gets the same query and the same key everywhere. They use the two fastest rotary pairs of each axis, and the key is
    rotated by the offset, so that the score is highest at the neighbour.
    """
    width = attention.to_q.out_features // attention.heads
    query, key = torch.zeros(width), torch.zeros(width)
    # Rotary pairs are (i, i + half). The first quarter of the pairs rotates with rows, the second with columns.
    half, quarter = width // 2, width // 4
    for first, offset in ((0, row), (quarter, column)):
        for pair, length in enumerate((1.0, 0.65)):
            angle = offset * 10000.0 ** (-2 * pair / half)
            query[first + pair] = length
            key[first + pair], key[first + pair + half] = length * math.cos(angle), -length * math.sin(angle)
    rows = slice(head * width, (head + 1) * width)
    for linear, vector in ((attention.to_q, query), (attention.to_k, key)):
        linear.weight[rows] *= 0.1
        linear.bias[rows] = 4 * vector


@torch.no_grad()
def init_attention_ahead(glyph_encoder: GlyphEncoder) -> None:
    """Initialise head i of the glyph encoder to attend i + 1 bytes ahead, by T5's relative position bias.

    With these heads a byte learns how far the end mark is. That number is also in a letter's prior token, as its place in the
    word. All layers share the biases.
    """
    biases = glyph_encoder.model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
    buckets, heads = biases.shape
    exact = buckets // 4  # distances with a bucket of their own, in each direction
    biases.fill_(-4.0 * exact)
    for head in range(heads):
        for ahead in range(exact):
            biases[ahead + (buckets // 2 if ahead else 0), head] = -4.0 * abs(head + 1 - ahead)


def random_lesson(rng: random.Random) -> Lesson:
    rows, columns = (8, 8) if rng.random() < 0.6 else (rng.choice(SIDES), rng.choice(SIDES))
    letters = rng.choice((0, 1, 2, 3, 4, 5, 6, min(LONGEST_WORD, columns)))
    if rng.random() < 0.65:
        return _pictures(rng, rows, columns, letters)
    return _edits(rng, rows, columns, letters or 3)


def _pictures(rng: random.Random, rows: int, columns: int, letters: int) -> Lesson:
    scenes: list[Scene] = []
    while len(scenes) < SCENES:
        scene = random_scene(rng, rows, columns, with_word=float(letters > 0), anywhere=True)
        if (len(scene.word.text) if scene.word else 0) == letters:
            scenes.append(scene)
    return Lesson(scenes, [scene.word.text if scene.word else "" for scene in scenes], [()] * SCENES)


def _edits(rng: random.Random, rows: int, columns: int, letters: int) -> Lesson:
    """A batch of edits of one kind. Glyph texts are the words of the results where those are new, and in some other batches."""
    kind = rng.choice(EDITS)
    has_text = kind == "word" or rng.random() < STAYING_TEXT
    edits = []
    while len(edits) < SCENES:
        edit = random_edit(rng, rows, columns, "en", kind=kind, anywhere=True, with_word=1.0 if has_text else 0.35)
        if not has_text or (edit.scene.word and len(edit.scene.word.text) == letters):
            edits.append(edit)
    return Lesson.of_edits(edits, says_word=has_text)


class _WrittenLayer:
    """Takes the keys and values of a layer as they are, with their gradients."""

    mode = "write"

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys_values = keys, values


def loss_of(models: DitModels, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    return lesson_loss(models, random_lesson(rng), generator)


def lesson_loss(
    models: DitModels,
    lesson: Lesson,
    generator: torch.Generator,
    *,
    prior_dropout: float = PRIOR_DROPOUT,
    letter_weight: float = LETTER_WEIGHT,
) -> torch.Tensor:
    """The weighted mean square error of the velocity; letters and shapes have more weight than bare ground.

    prior_dropout: the share of priors that are dropped, in a batch without references.
    """
    dit, glyph_encoder, vae = models
    device, model = dit.device, dit.model
    width, height = lesson.scenes[0].columns * CELL_PX, lesson.scenes[0].rows * CELL_PX
    latents = latents_of_scenes(dit, vae, lesson.scenes).repeat_interleave(DRAWS, 0)
    tokens = torch.stack([tokens_of(scene) for scene in lesson.scenes]).to(device)
    batch = len(latents)

    # u is the unshifted sigma. The larger of two draws favours the noisy start of a run.
    u = torch.rand(2, batch, generator=generator).amax(dim=0).to(device)
    size = _whole_size(width, height)
    shift = dit.shift.of_size(*size)
    sigma = (shift * u / (shift * u + 1 - u)).view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    with mixed_precision(device):
        caches = written_references(dit, vae, lesson.references, width=width, height=height)
        prior = model.embed_prior(prior_for_dit(tokens)).repeat_interleave(DRAWS, 0)
        if caches is None:
            dropped = (torch.rand(batch, generator=generator) < prior_dropout).to(device).view(-1, 1, 1)
            prior = torch.where(dropped, model.null_prior(device), prior)
        ids = glyph_encoder.tokenizer(lesson.texts, return_tensors="pt").input_ids.to(device)
        glyphs = model.embed_glyphs(glyph_encoder.model(ids).last_hidden_state).repeat_interleave(DRAWS, 0)
        time = model.embed_time(u * 1000 - 1, *size, torch.float32)
        noised = sigma * noise + (1 - sigma) * latents
        velocity = model(
            noised,
            temb=time,
            prior_embeds=prior,
            glyph_embeds=glyphs,
            image_rotary_emb=rope(dit, width, height),
            kv_caches=caches,
        )
    weights = _loss_weights(lesson.scenes, letter_weight).repeat_interleave(DRAWS, 0).to(device)
    return (weights * (velocity.float() - (noise - latents)).square()).mean() / weights.mean()


@torch.no_grad()
def latents_of_scenes(dit: Dit, vae: Vae, scenes: list[Scene]) -> torch.Tensor:
    """The latents of drawn scenes, normalised as the DiT reads them: [scenes, 16, h, w] float32."""
    pictures = torch.stack([draw(scene) for scene in scenes]).movedim(-1, 1).to(vae.device) * 2 - 1
    with mixed_precision(vae.device):
        latents = vae.model.encode(pictures).latent_dist.mode()
    return dit.space.normalise(latents.float())


def written_references(
    dit: Dit, vae: Vae, references: list[tuple[Scene, ...]], *, width: int, height: int
) -> list[LayerKVCache] | None:
    """The keys and values of the references of each picture, repeated DRAWS times, by layer. None without references.

    references: equally many for each picture, of width x height pixels.
    """
    written = []
    model = dit.model
    for scenes in zip(*references, strict=True):
        cache = [_WrittenLayer() for _ in model.transformer_blocks]
        prior = model.embed_prior(prior_for_dit(torch.stack([tokens_of(scene) for scene in scenes]).to(dit.device)))
        no_text = model.embed_glyphs(torch.empty(len(scenes), 0, model.config.text_embed_dim, device=dit.device))
        time = model.embed_time(torch.zeros(len(scenes), device=dit.device), *_whole_size(width, height), torch.float32)
        model(
            latents_of_scenes(dit, vae, list(scenes)),
            temb=time,
            prior_embeds=prior,
            glyph_embeds=no_text,
            image_rotary_emb=rope(dit, width, height),
            kv_caches=cache,
        )
        written.append([tuple(tensor.repeat_interleave(DRAWS, 0) for tensor in layer.keys_values) for layer in cache])
    return [LayerKVCache(layers) for layers in zip(*written, strict=True)] if written else None


def _whole_size(width: int, height: int) -> tuple[int, int]:
    """The size in pixels that the DiT is told: a strip is a crop of a picture of 256 x 256."""
    return (width, height) if height >= MIN_SIDE else (256, 256)


def _loss_weights(scenes: list[Scene], letter_weight: float) -> torch.Tensor:
    """The weight of each latent cell in the loss, [B, 1, h, w]."""
    bare = torch.stack([tokens_of(scene) for scene in scenes]) < len(COLOURS)
    letters = torch.stack([letters_after(scene) for scene in scenes]) >= 0
    weights = torch.where(bare, 1.0, torch.where(letters, letter_weight, SHAPE_WEIGHT))
    return weights.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
