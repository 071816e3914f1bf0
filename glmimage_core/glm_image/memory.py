"""How many bytes each stage of GLM-Image needs beside its weights, predicted from the configs.

Each stage's peak is where most tensors live at once; the formulas count those tensors. In bfloat16 some tensors are float32 all
the same, which BF16_OVERHEAD accounts for. They are within 10 % of what PyTorch's allocator measures on the CPU in float32
(tests/test_memory.py) and of what a GPU would be asked for at the released size (bench/counting.py, tests/test_counts.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..diffusion import batches_cfg, dit_token_count
from ..placement.prediction import BF16_OVERHEAD, SAMPLING_COPIES, Job
from ..vae import vae_decode_bytes, vae_encode_bytes
from .geometry import preview_grid, prior_grid
from .glyphs import MAX_GLYPH_BYTES
from .lookahead import SIZES
from .plans.entropy import ROWS_AT_ONCE
from .prior import SYNC_EVERY


class Stage(NamedTuple):
    """What a stage needs on the device: a part of a component, and so many bytes to work."""

    component: str
    part: str  # by its name in `Component.parts`
    working: int


def prior_bytes(config: Any, itemsize: int, job: Job, rows: int = 1) -> int:
    """Generate Prior: the cache of all tokens with their rotations and a pass of `rows` tokens, or the prompt's widest layer."""
    text = config.text_config
    prompt = job.prompt_tokens + sum(prior_grid(*size).tokens + 2 for size in job.references)
    large = prior_grid(job.width, job.height)
    emitted = large.tokens + (0 if job.references else preview_grid(large).tokens)
    head_width = text.hidden_size // text.num_attention_heads
    token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width * itemsize
    fed = emitted + max(rows, SYNC_EVERY)  # the last passes reach behind the end
    cache = job.batch * (prompt + fed) * token_bytes
    rotation = fed * 2 * head_width * itemsize
    noise = (rows + max(rows, SYNC_EVERY)) * text.vision_vocab_size * 4
    drawing = rows * SAMPLING_COPIES * text.vision_vocab_size * 4
    mask = rows * (prompt + fed) * (text.num_attention_heads // text.num_key_value_heads) * itemsize
    feeding = rows * (3 * text.intermediate_size + 3 * text.hidden_size) * itemsize + mask
    decoding = cache + rotation + job.batch * (noise + max(drawing, feeding))
    prefilling = prompt * (token_bytes + (4 * text.intermediate_size + 6 * text.hidden_size) * itemsize)
    return max(decoding, prefilling)


def entropy_bytes(config: Any, itemsize: int, tokens: int) -> int:
    """The entropies of a plan: one pass over `tokens` of prompt and plan without a cache, or the logits of a part of them."""
    text = config.text_config
    feeding = tokens * (4 * text.intermediate_size + 6 * text.hidden_size) * itemsize
    asking = min(tokens, ROWS_AT_ONCE) * 3 * text.vision_vocab_size * 4 + 2 * tokens * text.hidden_size * itemsize
    return max(feeding, asking)


def most_rows(config: Any, itemsize: int, job: Job, free: int | None) -> int:
    """The most tokens of a pass that fit in `free` bytes beside everything else; None stands for main memory."""
    fitting = [rows for rows in SIZES if free is None or prior_bytes(config, itemsize, job, rows) <= free]
    return max(fitting, default=1)


def vision_bytes(config: Any, itemsize: int, width: int, height: int, *, on_cpu: bool = False) -> int:
    """The vision half of Encode Reference: a normalised codebook, beside its squares or beside three tables of distances from
    every token to every row of it; or the position embeddings in float32, which the CPU copies in part."""
    tokens = prior_grid(width, height).tokens
    vision, codebook = config.vision_config, config.vq_config
    rows = codebook.num_embeddings * codebook.embed_dim
    distances = 3 * tokens * codebook.num_embeddings
    quantizing = (rows + max(rows, distances) + 4 * tokens * vision.hidden_size) * itemsize
    positions = round((1.5 if on_cpu else 1) * (vision.image_size // vision.patch_size) ** 2 * vision.hidden_size * 4)
    encoding = tokens * (3 * vision.hidden_size + 2 * vision.intermediate_size) * itemsize + positions
    return max(quantizing, encoding)


def dit_bytes(config: Any, itemsize: int, job: Job, caches_on_device: bool = True, *, on_cpu: bool = False) -> int:
    """The sampler: its own passes, which read the caches of all references, or the pass that writes the largest one.

    Caches are kept on the CPU, which may be the device; a run has them on the device, or only those of one layer at a time.
    """
    half = BF16_OVERHEAD if on_cpu and itemsize < 4 else 1
    width = config.num_attention_heads * config.attention_head_dim
    picture = job.batch * dit_token_count(job.width, job.height)
    shared = job.guided and job.one_length and not job.references and batches_cfg(picture)
    own = (2 if shared else 1) * (picture + job.batch * job.glyph_tokens)
    cached = [dit_token_count(*size) for size in job.references]
    # The widest place is a feed-forward, 14 tensors of the stream's width; with many cached tokens it is the attention,
    # where each layer joins cached and own keys and values.
    stream = max(14 * own, 12.5 * own + 2 * job.batch * sum(cached)) * half * width * itemsize
    rope = 2 * 4 * config.attention_head_dim * dit_token_count(job.width, job.height)
    latents = own * config.patch_size**2 * config.in_channels * 4 * (3 if job.guided else 2)
    layer_cache = 2 * sum(cached) * width * itemsize
    caches = layer_cache * (config.num_layers if caches_on_device else 1)
    planned = picture * width * itemsize
    velocity = picture * config.patch_size**2 * config.in_channels * itemsize
    remembered = (2 if job.guided else 1) * (picture * width * itemsize + 2 * velocity) if job.step_cache else 0
    reading = stream + planned + remembered + rope + latents + caches
    writing = (caches if on_cpu else 0) + 14 * half * max(cached, default=0) * width * itemsize
    return round(max(reading, writing))


def glyph_bytes(config: Any, itemsize: int, texts: Sequence[str]) -> int:
    """Encode Prompt: ByT5's widest moment, with all texts in one batch, padded to the longest (a token is a byte).

    The first layer computes its position bias from six tables of int64, one number for each pair of tokens. A feed-forward has
    three tensors of its width, beside the bias, which stays for all layers. An attention has bias, scores and softmax of each
    head and text, 4 bytes each even in bfloat16. Beside each of the three there are seven tensors of the stream's width.

    Source: T5Attention and T5DenseGatedActDense of transformers 5.1, where the allocator shows this within 10 % for ByT5 in
    float32 and one text. Newer ones keep fewer scores, and need down to half of it.
    """
    count = max(len(texts), 1)
    padding = 1 if count % 2 == 0 else 0  # encode_glyph_texts puts a pad token in front of an even number of texts
    length = max((min(len(text.encode()) + 1, MAX_GLYPH_BYTES) for text in texts), default=1) + padding
    stream = 7 * count * length * config.d_model * itemsize
    pairs = config.num_heads * length**2
    positions = 6 * 8 * length**2 + 4 * count * pairs
    feeding = 3 * count * length * config.d_ff * itemsize + count * pairs * itemsize
    attending = 3 * 4 * count * pairs
    return stream + max(positions, feeding, attending)


def predict(configs: Mapping[str, Any], itemsizes: Mapping[str, int], job: Job, on_cpu: bool = False) -> dict[str, Stage]:
    """Each stage of a run by its name.

    configs and itemsizes (bytes of one parameter) go by component. on_cpu: whether the CPU computes, whose kernels copy more.
    """
    ar, dit, vae = (configs[name] for name in ("vision_language_encoder", "transformer", "vae"))
    ar_item, dit_item, vae_item = (itemsizes[name] for name in ("vision_language_encoder", "transformer", "vae"))
    stages = {}
    if job.references:
        largest = max(job.references, key=lambda size: size[0] * size[1])
        seeing = vision_bytes(ar, ar_item, *largest, on_cpu=on_cpu)
        encoding = vae_encode_bytes(vae, vae_item, *largest, on_cpu=on_cpu)
        stages["Encode Reference, vision"] = Stage("vision_language_encoder", "vision", seeing)
        stages["Encode Reference, VAE"] = Stage("vae", "model", encoding)
    stages["Generate Prior"] = Stage("vision_language_encoder", "language", prior_bytes(ar, ar_item, job))
    stages["Sampler"] = Stage("transformer", "model", dit_bytes(dit, dit_item, job, on_cpu=on_cpu))
    decoding = vae_decode_bytes(vae, vae_item, job.width, job.height, on_cpu=on_cpu)
    stages["VAE Decode"] = Stage("vae", "model", decoding)
    return stages
