"""The AR language model over a key/value cache that is laid out once, a window of tokens at a pass.

    prefill         the prompt, once, through transformers' model; its keys and values are copied into the cache
    decode_window   W tokens of every sequence in, the logits of the token after each of them out

transformers' forward serves every model and every input; at one token a pass that costs as much time as the matrix products
of a small model. `decode_window` is the same arithmetic and nothing else. It calls the layers and reads no weights but those
of the norms, so the others may be streamed, patched or quantized. Queries, keys and values are one product where the weights
allow it.

A window may hold guesses. What wrong ones leave in the cache lies after the tokens that are known, where no token attends to
it, and the next window overwrites it.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention

from ..weights.joined import side_by_side
from .ar_model import ArModel
from .rope import FusedRotation, Rotation
from .split_decode import can_split, split_decode

ALIGNMENT = 16  # slots of the cache


class RmsNorm(NamedTuple):
    weight: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As transformers': normalised in float32, rounded, then weighted. In one operation where nothing is rounded, and on an
        accelerator, where it then rounds once less."""
        if x.dtype == self.weight.dtype and (x.dtype == torch.float32 or x.device.type != "cpu"):
            return torch.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return self.weight * torch.rms_norm(x, self.weight.shape, None, self.epsilon)


class Layer(NamedTuple):
    """A decoder layer's submodules, resolved once: attribute lookup on an nn.Module costs as much as a small matrix product.

    qkv: the queries, keys and values of tokens [N, D], side by side. cache: keys and values, [2, B, key/value heads, capacity,
    head width].
    """

    norm: RmsNorm
    qkv: Callable[[torch.Tensor], torch.Tensor]
    o: Module
    scaling: float
    attended_norm: RmsNorm
    mlp_norm: RmsNorm
    gate_up: Module
    activation: Module
    down: Module
    mlp_out_norm: RmsNorm
    cache: torch.Tensor


@dataclass(frozen=True)
class DecodeState:
    """What stays the same from token to token of one run.

    The first prompt_length tokens of the cache are the prompt's. positions: [3, N] of the tokens that may be fed, rotation: of
    these tokens.
    """

    ar: ArModel
    layers: Sequence[Layer]
    prompt_length: int
    positions: torch.Tensor
    rotation: Rotation


class Window(NamedTuple):
    """Where the W tokens of a pass stand.

    slots: their places in the cache, a slice that all sequences share, or the sequence [B, 1] and the place [B, W] of each,
    int64. attended: how many slots of the cache the last of them attends to. mask: added to the scores, [B or 1, 1, W * G,
    attended] with G the query heads of a key/value head, for one token [B or 1, 1, 1, attended], or None where all of these slots
    are filled. lengths: in place of a mask, how many slots the one token of each sequence attends to, once for each key/value
    head: [B * heads] int32.
    """

    slots: slice | tuple[torch.Tensor, torch.Tensor]
    attended: int
    rotation: Rotation | FusedRotation
    mask: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    def write(self, cache: torch.Tensor, rows: torch.Tensor) -> None:
        """Write keys and values of the window, [B, W, 2 * heads, head width], into a layer's cache."""
        rows = rows.unflatten(2, (2, -1))
        if isinstance(self.slots, slice):
            cache[:, :, :, self.slots] = rows.permute(2, 0, 3, 1, 4)
        else:
            sequences, places = self.slots
            cache[:, sequences, :, places] = rows  # [B, W, 2, heads, head width]


def prefill(
    ar: ArModel, ids: torch.Tensor, positions: torch.Tensor, following: torch.Tensor, *, batch: int
) -> tuple[torch.Tensor, DecodeState]:
    """Run the prompt and repeat it for `batch` sequences, with room for the tokens that follow.

    ids: [S], positions: [3, S], following: [3, N], the positions of all tokens that may be fed. Calls the language model
    itself: the outer model keeps mrope state on itself, so two runs would disturb each other. Returns the logits of the
    next token, [B, V] float32.
    """
    from transformers import DynamicCache

    language_model = ar.model.model.language_model
    prompt = DynamicCache(config=ar.model.config.text_config)
    hidden = language_model(
        inputs_embeds=ar.model.get_input_embeddings()(ids[None].to(ar.device)).to(ar.dtype),
        position_ids=positions[:, None].to(ar.device),
        use_cache=True,
        **cache_argument(language_model, prompt),
    ).last_hidden_state[:, -1]
    layers, may_join = [], ar.may_join and not ar.loras and (ar.weights_are_static or ar.device.type == "cpu")
    for layer, cached in zip(language_model.layers, prompt.layers, strict=True):
        cache = _with_room((cached.keys, cached.values), batch, following.shape[1])
        cached.keys = cached.values = None  # the prompt's own are freed as soon as they are copied
        attention, mlp = layer.self_attn, layer.mlp
        layers.append(
            Layer(
                norm=_rms_norm(layer.input_layernorm),
                qkv=side_by_side((attention.q_proj, attention.k_proj, attention.v_proj), join=may_join),
                o=attention.o_proj,
                scaling=attention.scaling,
                attended_norm=_rms_norm(layer.post_self_attn_layernorm),
                mlp_norm=_rms_norm(layer.post_attention_layernorm),
                gate_up=mlp.gate_up_proj,
                activation=mlp.activation_fn,
                down=mlp.down_proj,
                mlp_out_norm=_rms_norm(layer.post_mlp_layernorm),
                cache=cache,
            )
        )
    state = DecodeState(ar=ar, layers=layers, prompt_length=len(ids), positions=following, rotation=_rotation(ar, following))
    return _logits(ar, hidden).repeat(batch, 1), state


def cache_argument(language_model: Module, cache: Any) -> dict[str, Any]:
    """The cache under the name that the language model's forward has for it: `cache` since transformers 5.24, where
    `past_key_values` is deprecated, and `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"
    return {name: cache}


def _with_room(prompt: Sequence[torch.Tensor], batch: int, tokens: int) -> torch.Tensor:
    """Keys and values, [1, heads, S, width] each -> [2, batch, heads, S + tokens or a few more, width], zeros after the prompt.

    A multiple of ALIGNMENT: attention would pad a mask of another width anew in each layer.
    """
    _, heads, prompt_length, width = prompt[0].shape
    capacity = math.ceil((prompt_length + tokens) / ALIGNMENT) * ALIGNMENT
    cache = prompt[0].new_zeros((2, batch, heads, capacity, width))
    for of_layer, tensor in zip(cache, prompt, strict=True):
        of_layer[:, :, :prompt_length] = tensor
    return cache


def _rms_norm(norm: Module) -> RmsNorm:
    return RmsNorm(norm.weight, norm.variance_epsilon)


def _rotation(ar: ArModel, positions: torch.Tensor) -> Rotation:
    """The rotation of tokens at `positions`, [3, T]."""
    like = torch.empty(0, device=ar.device, dtype=ar.dtype)
    cosine, sine = ar.model.model.language_model.rotary_emb(like, positions[:, None].to(ar.device))  # [1, T, rotated] each
    return Rotation.of(cosine[0], sine[0])


def _logits(ar: ArModel, hidden: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [..., V] float32, V the codebook: the head is wider, and its other ids must never stand inside a grid."""
    return ar.model.lm_head(hidden)[..., : ar.codebook_size].float()


def decode_window(state: DecodeState, tokens: torch.Tensor, window: Window) -> torch.Tensor:
    """Feed W tokens of each sequence, [B, W]. Writes into the cache, returns the logits after each, [B, W, V] float32."""
    batch, rows = tokens.shape
    x = state.ar.model.get_input_embeddings()(tokens.flatten()).to(state.ar.dtype)  # [B * W, D]
    for layer in state.layers:
        _, _, heads, _, width = layer.cache.shape
        qkv = layer.qkv(layer.norm(x)).view(batch, rows, -1, width)  # query heads, key heads, value heads
        window.rotation.rotate_(qkv[:, :, :-heads])
        window.write(layer.cache, qkv[:, :, -2 * heads :])
        mixed = _attend(qkv[:, :, : -2 * heads], layer, window)
        x = x + layer.attended_norm(layer.o(mixed))
        gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
        x = x + layer.mlp_out_norm(layer.down(up * layer.activation(gate)))
    return _logits(state.ar, _rms_norm(state.ar.model.model.language_model.norm)(x)).view(batch, rows, -1)


def _attend(queries: torch.Tensor, layer: Layer, window: Window) -> torch.Tensor:
    """Mix the values for queries, [B, W, query heads, width]: [B * W, query heads * width].

    Query heads that share a key/value head go through the attention as if they were queries at several positions, so no key or
    value is repeated. Of a single sequence, each key/value head goes through it as if it were a sequence: the output then lies as
    the next product wants it.
    """
    batch, rows, _, width = queries.shape
    keys, values = layer.cache
    heads = keys.shape[1]
    queries = queries.unflatten(2, (heads, -1)).transpose(1, 2).flatten(2, 3)  # [B, heads, W * G, width]
    if window.lengths is not None:
        queries, keys, values = queries.flatten(0, 1)[:, None], *(x.flatten(0, 1)[:, :, None] for x in (keys, values))
        return split_decode()(queries, keys, values, window.lengths).reshape(batch, -1)
    inputs = queries.to(keys.dtype), keys[:, :, : window.attended], values[:, :, : window.attended]
    if batch == 1:
        inputs = (x.transpose(0, 1) for x in inputs)
    mixed = scaled_dot_product_attention(*inputs, attn_mask=window.mask, scale=layer.scaling)
    return mixed.reshape(batch, heads, rows, -1, width).transpose(1, 2).reshape(batch * rows, -1)


def filled_window(state: DecodeState, steps: torch.Tensor, rows: int) -> Window:
    """The window over the filled part of the cache only. steps: of the first token of each sequence, [B] int64 on the CPU."""
    first, last = int(steps.min()), int(steps.max())
    attended = state.prompt_length + last + rows
    if first == last:
        slots = slice(state.prompt_length + first, attended)
        mask = None if rows == 1 else _mask(state, torch.arange(slots.start, slots.stop)[None], attended)
        return Window(slots, attended, state.rotation.at(slice(first, first + rows)), mask=mask)
    return _scattered(state, steps, rows, attended)


def masked_window(state: DecodeState, steps: torch.Tensor, rows: int) -> Window:
    """The window over the whole cache, with the steps as data, [B] int64."""
    return _scattered(state, steps, rows, attended=state.layers[0].cache.shape[3])


def _scattered(state: DecodeState, steps: torch.Tensor, rows: int, attended: int) -> Window:
    """The window of sequences that need not be equally far."""
    layer = state.layers[0]
    steps = steps[:, None] + torch.arange(rows, device=steps.device)  # [B, W]
    places = steps + state.prompt_length
    window = Window((torch.arange(len(steps), device=steps.device)[:, None], places), attended, state.rotation.at(steps))
    if rows == 1 and can_split(layer.cache, layer.scaling):
        return window._replace(lengths=(places.int() + 1).repeat_interleave(layer.cache.shape[2]))
    return window._replace(mask=_mask(state, places, attended))


def _mask(state: DecodeState, slots: torch.Tensor, attended: int) -> torch.Tensor:
    """A token attends to its own slot and all before it. slots: [B or 1, W]. Returns the mask as in Window."""
    config, cache = state.ar.model.config.text_config, state.layers[0].cache
    sharing = config.num_attention_heads // config.num_key_value_heads
    hidden = torch.arange(attended, device=slots.device) > slots[:, :, None]  # [B or 1, W, attended]
    mask = torch.zeros(hidden.shape, dtype=cache.dtype, device=slots.device).masked_fill_(hidden, -torch.inf)
    return (mask if slots.shape[1] == 1 else mask.repeat_interleave(sharing, dim=1))[:, None]
