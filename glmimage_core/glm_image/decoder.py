"""The AR language model at one token a step, over a key/value cache laid out once.

    prefill      the prompt once through transformers' model, its keys and values copied into the cache
    decode_one   one token of every sequence in, the logits of the next out
    record       the same as a CUDA graph

transformers' forward serves every model and every input, which at one token a step costs as much time as a small model's
matrix products. decode_one is the same arithmetic in the same order and nothing else. It calls the layers and reads no weights
but the norms', so that the others may be streamed, patched or quantized.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import Module
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
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
    """A decoder layer's parts, looked up once: on a module that costs as much as a small matrix product.

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
class Run:
    """What stays the same from token to token of one run.

    `filled` tokens of the cache come from the prompt. positions: [3, T] of the tokens that are fed. The rotary embedding of
    each is x * cosine + x[..., partner] * sine, with cosine and sine [T, head width] and partner [head width] int64; what a
    head has beyond the rotated part has cosine 1 and sine 0.
    """

    ar: "ArModel"
    layers: Sequence[Layer]
    filled: int
    positions: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    partner: torch.Tensor


class Place(NamedTuple):
    """Where one step's token stands.

    slot: its place in the cache, a slice of length 1 or [1] int64. seen: how much of the cache it sees. mask: [1, 1, 1, seen]
    bool, or None where all that is seen is there. cosine, sine: [head width].
    """

    slot: slice | torch.Tensor
    seen: int
    mask: torch.Tensor | None
    cosine: torch.Tensor
    sine: torch.Tensor


def prefill(
    ar: "ArModel", ids: torch.Tensor, positions: torch.Tensor, following: torch.Tensor, batch: int
) -> tuple[torch.Tensor, Run]:
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
        past_key_values=prompt,
        use_cache=True,
    ).last_hidden_state[:, -1]
    layers = []
    for layer, cached in zip(language_model.layers, prompt.layers, strict=True):
        keys, values = (_with_room(part, batch, following.shape[1]) for part in (cached.keys, cached.values))
        cached.keys = cached.values = None  # the prompt's own go as soon as they are copied
        attention = layer.self_attn
        layers.append(
            Layer(
                _rms_norm(layer.input_layernorm),
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                attention.o_proj,
                attention.scaling,
                _rms_norm(layer.post_self_attn_layernorm),
                _rms_norm(layer.post_attention_layernorm),
                layer.mlp.gate_up_proj,
                layer.mlp.activation_fn,
                layer.mlp.down_proj,
                _rms_norm(layer.post_mlp_layernorm),
                keys,
                values,
            )
        )
    run = Run(ar, layers, len(ids), following, *_rotation(ar, following, width=layers[0].keys.shape[3]))
    return _logits(ar, hidden).repeat(batch, 1), run


def _with_room(prompt: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """[1, heads, S, width] -> [batch, heads, S + tokens, width], zeros where nothing is yet."""
    _, heads, filled, width = prompt.shape
    whole = prompt.new_zeros(batch, heads, filled + tokens, width)
    whole[:, :, :filled] = prompt
    return whole


def _rms_norm(norm: Module) -> RmsNorm:
    return RmsNorm(norm.weight, norm.variance_epsilon)


def _rotation(ar: "ArModel", positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosine, sine and partner, as in Run, of tokens at `positions`, [3, T], for heads of a width."""
    like = torch.empty(0, device=ar.device, dtype=ar.dtype)
    cosine, sine = ar.model.model.language_model.rotary_emb(like, positions[:, None].to(ar.device))  # [1, T, rotated] each
    rotated = cosine.shape[-1]
    half = rotated // 2
    sine = torch.cat((-sine[0, :, :half], sine[0, :, half:]), dim=-1)
    partner = torch.arange(width, device=ar.device)
    partner[:rotated] = partner[:rotated].roll(half)
    return pad(cosine[0], (0, width - rotated), value=1), pad(sine, (0, width - rotated)), partner


def _logits(ar: "ArModel", hidden: torch.Tensor) -> torch.Tensor:
    """[B, D] -> [B, V] float32: the head is wider than the codebook, and what lies beyond never stands inside a grid."""
    return ar.model.lm_head(hidden)[:, : ar.codebook_size].float()


def decode_one(run: Run, token: torch.Tensor, place: Place) -> torch.Tensor:
    """Feed one token a sequence. token: [B]. Writes into the cache, returns the next logits [B, V] float32.

    Query heads that share a key/value head go through the attention as if they were queries at several positions, so no
    key or value is repeated.
    """
    slot, seen, mask, cosine, sine = place
    x = run.ar.model.get_input_embeddings()(token).to(run.ar.dtype)  # [B, D]
    batch = len(x)
    for layer in run.layers:
        keys, values = layer.keys, layer.values
        _, heads, _, width = keys.shape
        normed = layer.norm(x)
        rotated = torch.cat((layer.q(normed), layer.k(normed)), dim=-1).view(batch, -1, width)  # query heads, key heads
        rotated = rotated * cosine + rotated[..., run.partner] * sine
        keys[:, :, slot] = rotated[:, -heads:, None]
        values[:, :, slot] = layer.v(normed).view(batch, heads, 1, width)
        attended = scaled_dot_product_attention(
            rotated[:, :-heads].reshape(batch, heads, -1, width).to(keys.dtype),
            keys[:, :, :seen],
            values[:, :, :seen],
            attn_mask=mask,
            scale=layer.scaling,
        )
        x = x + layer.attended_norm(layer.o(attended.reshape(batch, -1)))
        gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
        x = x + layer.mlp_out_norm(layer.down(up * layer.activation(gate)))
    return _logits(run.ar, _rms_norm(run.ar.model.model.language_model.norm)(x))


def decode_filled(run: Run, token: torch.Tensor, step: int) -> torch.Tensor:
    """decode_one over the filled part of the cache."""
    slot = run.filled + step
    return decode_one(run, token, Place(slice(slot, slot + 1), slot + 1, None, run.cosine[step], run.sine[step]))


def decode_masked(run: Run, token: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """decode_one over the whole cache behind a mask, with the step as data, [1] int64."""
    slot, capacity = step + run.filled, run.layers[0].keys.shape[2]
    mask = (torch.arange(capacity, device=step.device) <= slot).view(1, 1, 1, -1)
    return decode_one(run, token, Place(slot, capacity, mask, run.cosine[step][0], run.sine[step][0]))


def decoder(run: Run) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """What decodes the tokens of a run: (token [B], step) -> logits [B, V], valid until the next call.

    On the CPU a token sees that part of the cache which is filled. Elsewhere it sees all of it behind a mask, so that every
    step is the same operations on the same memory and can be recorded; where the weights do not stay where they are, the
    steps are not recorded and give the same tokens all the same.
    """
    device = run.ar.device
    if device.type == "cpu":
        return lambda token, step: decode_filled(run, token, step)
    recorded = record(run) if run.ar.weights_are_static and device.type == "cuda" else None
    if recorded is not None:
        return recorded
    return lambda token, step: decode_masked(run, token, torch.full((1,), step, device=device))


def record(run: Run) -> Callable[[torch.Tensor, int], torch.Tensor] | None:
    """decode_masked as a CUDA graph, or None where a step waits for the device.

    That is found out beforehand, since a recording that fails leaves PyTorch's allocator broken: the step runs twice, the
    first time for libraries to pick their kernels and allocate their workspaces.
    """
    device = run.ar.device
    token = torch.zeros(len(run.layers[0].keys), dtype=torch.int64, device=device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    main, side, before = torch.cuda.current_stream(device), torch.cuda.Stream(device), torch.cuda.get_sync_debug_mode()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        decode_masked(run, token, step)  # writes where the first step will
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode_masked(run, token, step)
        except RuntimeError as error:
            log.warning("decoding without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
            return None
        finally:
            torch.cuda.set_sync_debug_mode(before)
            main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        logits = decode_masked(run, token, step)

    def decode(next_token: torch.Tensor, at: int) -> torch.Tensor:
        token.copy_(next_token)
        step.fill_(at)
        graph.replay()
        return logits

    return decode
