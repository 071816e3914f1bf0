"""The AR language model at one token a step, over a key/value cache that is laid out once.

    prefill      the prompt, once, through transformers' model; its keys and values are copied into the cache
    decode_one   one token of every sequence in, the logits of the next one out
    record       the same as a CUDA graph

transformers' forward serves every model and every input; at one token a step that costs as much time as the matrix products
of a small model. `decode_one` is the same arithmetic in the same order and nothing else. It calls the layers and reads no
weights but those of the norms, so the others may be streamed, patched or quantized.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn.functional import pad, scaled_dot_product_attention

from .ar_model import ArModel

log = logging.getLogger(__name__)


class RmsNorm(NamedTuple):
    weight: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As transformers': normalised in float32, rounded, then weighted. Where nothing is rounded, in one operation."""
        if x.dtype == self.weight.dtype == torch.float32:
            return torch.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return self.weight * torch.rms_norm(x, self.weight.shape, None, self.epsilon)


class Layer(NamedTuple):
    """A decoder layer's submodules, resolved once: attribute lookup on an nn.Module costs as much as a small matrix product.

    keys, values: its cache, [B, key/value heads, capacity, head width] each.
    """

    norm: RmsNorm
    q: Module
    k: Module
    v: Module
    o: Module
    scaling: float
    attended_norm: RmsNorm
    mlp_norm: RmsNorm
    gate_up: Module
    activation: Module
    down: Module
    mlp_out_norm: RmsNorm
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class DecodeState:
    """What stays the same from token to token of one run.

    The first prompt_length tokens of the cache are the prompt's. positions: [3, T] of the tokens that are fed. The rotary
    embedding of each is x * cosine + x[..., rotate_index] * sine, with cosine and sine [T, head width] and rotate_index [head
    width] int64. That is rotate_half with its sign in the sine: one gather for the whole head, since the part of a head that
    is not rotated has cosine 1 and sine 0.
    """

    ar: ArModel
    layers: Sequence[Layer]
    prompt_length: int
    positions: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    rotate_index: torch.Tensor


class StepPosition(NamedTuple):
    """Where one step's token stands.

    slot: its place in the cache, a slice of length 1 or [1] int64. attended: how many slots of the cache it attends to.
    mask: [1, 1, 1, attended] bool, or None where all of these slots are filled. cosine, sine: [head width].
    """

    slot: slice | torch.Tensor
    attended: int
    mask: torch.Tensor | None
    cosine: torch.Tensor
    sine: torch.Tensor


def prefill(
    ar: ArModel, ids: torch.Tensor, positions: torch.Tensor, following: torch.Tensor, *, batch: int
) -> tuple[torch.Tensor, DecodeState]:
    """Run the prompt and repeat it for `batch` sequences, with room for the tokens that follow.

    ids: [S], positions: [3, S], following: [3, T], the positions of the tokens that will be fed. Calls the language model
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
    layers = []
    for layer, cached in zip(language_model.layers, prompt.layers, strict=True):
        keys, values = (_with_room(tensor, batch, following.shape[1]) for tensor in (cached.keys, cached.values))
        cached.keys = cached.values = None  # the prompt's own are freed as soon as they are copied
        attention, mlp = layer.self_attn, layer.mlp
        layers.append(
            Layer(
                norm=_rms_norm(layer.input_layernorm),
                q=attention.q_proj,
                k=attention.k_proj,
                v=attention.v_proj,
                o=attention.o_proj,
                scaling=attention.scaling,
                attended_norm=_rms_norm(layer.post_self_attn_layernorm),
                mlp_norm=_rms_norm(layer.post_attention_layernorm),
                gate_up=mlp.gate_up_proj,
                activation=mlp.activation_fn,
                down=mlp.down_proj,
                mlp_out_norm=_rms_norm(layer.post_mlp_layernorm),
                keys=keys,
                values=values,
            )
        )
    cosine, sine, rotate_index = _rotation(ar, following, width=layers[0].keys.shape[3])
    state = DecodeState(
        ar=ar,
        layers=layers,
        prompt_length=len(ids),
        positions=following,
        cosine=cosine,
        sine=sine,
        rotate_index=rotate_index,
    )
    return _logits(ar, hidden).repeat(batch, 1), state


def cache_argument(language_model: Module, cache: Any) -> dict[str, Any]:
    """The cache under the name that the language model's forward has for it: `cache` since transformers 5.24, where
    `past_key_values` is deprecated, and `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(language_model.forward).parameters else "past_key_values"
    return {name: cache}


def _with_room(prompt: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """[1, heads, S, width] -> [batch, heads, S + tokens, width], zeros after the prompt."""
    _, heads, prompt_length, width = prompt.shape
    cache = prompt.new_zeros(batch, heads, prompt_length + tokens, width)
    cache[:, :, :prompt_length] = prompt
    return cache


def _rms_norm(norm: Module) -> RmsNorm:
    return RmsNorm(norm.weight, norm.variance_epsilon)


def _rotation(ar: ArModel, positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosine, sine and rotate_index, as in DecodeState, of tokens at `positions`, [3, T], for heads of a width."""
    like = torch.empty(0, device=ar.device, dtype=ar.dtype)
    cosine, sine = ar.model.model.language_model.rotary_emb(like, positions[:, None].to(ar.device))  # [1, T, rotated] each
    rotated = cosine.shape[-1]
    half = rotated // 2
    sine = torch.cat((-sine[0, :, :half], sine[0, :, half:]), dim=-1)
    rotate_index = torch.arange(width, device=ar.device)
    rotate_index[:rotated] = rotate_index[:rotated].roll(half)
    return pad(cosine[0], (0, width - rotated), value=1), pad(sine, (0, width - rotated)), rotate_index


def _logits(ar: ArModel, hidden: torch.Tensor) -> torch.Tensor:
    """[B, D] -> [B, V] float32, V the codebook: the head is wider, and its other ids must never stand inside a grid."""
    return ar.model.lm_head(hidden)[:, : ar.codebook_size].float()


def decode_one(state: DecodeState, token: torch.Tensor, position: StepPosition) -> torch.Tensor:
    """Feed one token a sequence, [B]. Writes into the cache, returns the next logits, [B, V] float32.

    Query heads that share a key/value head go through the attention as if they were queries at several positions, so no
    key or value is repeated.
    """
    slot, attended, mask, cosine, sine = position
    x = state.ar.model.get_input_embeddings()(token).to(state.ar.dtype)  # [B, D]
    batch = len(x)
    for layer in state.layers:
        keys, values = layer.keys, layer.values
        _, heads, _, width = keys.shape
        normed = layer.norm(x)
        rotated = torch.cat((layer.q(normed), layer.k(normed)), dim=-1).view(batch, -1, width)  # query heads, key heads
        rotated = rotated * cosine + rotated[..., state.rotate_index] * sine
        keys[:, :, slot] = rotated[:, -heads:, None]
        values[:, :, slot] = layer.v(normed).view(batch, heads, 1, width)
        mixed = scaled_dot_product_attention(
            rotated[:, :-heads].reshape(batch, heads, -1, width).to(keys.dtype),
            keys[:, :, :attended],
            values[:, :, :attended],
            attn_mask=mask,
            scale=layer.scaling,
        )
        x = x + layer.attended_norm(layer.o(mixed.reshape(batch, -1)))
        gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
        x = x + layer.mlp_out_norm(layer.down(up * layer.activation(gate)))
    return _logits(state.ar, _rms_norm(state.ar.model.model.language_model.norm)(x))


def decode_filled(state: DecodeState, token: torch.Tensor, step: int) -> torch.Tensor:
    """decode_one over the filled part of the cache."""
    slot = state.prompt_length + step
    return decode_one(
        state, token, StepPosition(slice(slot, slot + 1), slot + 1, mask=None, cosine=state.cosine[step], sine=state.sine[step])
    )


def decode_masked(state: DecodeState, token: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """decode_one over the whole cache behind a mask, with the step as data, [1] int64."""
    slot, capacity = step + state.prompt_length, state.layers[0].keys.shape[2]
    mask = (torch.arange(capacity, device=step.device) <= slot).view(1, 1, 1, -1)
    return decode_one(
        state, token, StepPosition(slot, capacity, mask=mask, cosine=state.cosine[step][0], sine=state.sine[step][0])
    )


Decode = Callable[[torch.Tensor, int], torch.Tensor]
"""(token [B], step) -> logits [B, V] float32. A recorded step writes them to the same memory each time: read them before the
next call."""


def decoder(state: DecodeState) -> Decode:
    """The fastest way to decode the tokens of a run on its device; all ways give the same tokens.

    On the CPU a token attends to the filled part of the cache. Elsewhere it attends to all of it behind a mask, so that
    every step is the same operations on the same memory and can be recorded as a CUDA graph. Where the weights do not keep
    their addresses, the steps are not recorded.
    """
    device = state.ar.device
    if device.type == "cpu":
        return lambda token, step: decode_filled(state, token, step)
    recorded = record(state) if state.ar.weights_are_static and device.type == "cuda" else None
    if recorded is not None:
        return recorded
    return lambda token, step: decode_masked(state, token, torch.full((1,), step, device=device))


def record(state: DecodeState) -> Decode | None:
    """decode_masked as a CUDA graph, or None where a step waits for the device.

    That is found out beforehand, since a recording that fails leaves PyTorch's allocator broken: the step runs twice, the
    first time for libraries to pick their kernels and allocate their workspaces.
    """
    device = state.ar.device
    token = torch.zeros(len(state.layers[0].keys), dtype=torch.int64, device=device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    main, side, before = torch.cuda.current_stream(device), torch.cuda.Stream(device), torch.cuda.get_sync_debug_mode()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        decode_masked(state, token, step)  # writes where the first step will
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode_masked(state, token, step)
        except RuntimeError as error:
            log.warning("decoding without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
            return None
        finally:
            torch.cuda.set_sync_debug_mode(before)
            main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        logits = decode_masked(state, token, step)

    def decode(next_token: torch.Tensor, at: int) -> torch.Tensor:
        token.copy_(next_token)
        step.fill_(at)
        graph.replay()
        return logits

    return decode
