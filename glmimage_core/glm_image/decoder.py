"""The AR language model over a key/value cache that is laid out once, a window of tokens at a pass.

    prefill         the prompt, once, through transformers' model; its keys and values are copied into the cache
    decode_window   W tokens of every sequence in, the logits of the token after each of them out
    decoder         a pass and its draws in the fastest way for a device; on CUDA a recorded graph for each W

transformers' forward serves every model and every input; at one token a pass that costs as much time as the matrix products
of a small model. `decode_window` is the same arithmetic in the same order and nothing else. It calls the layers and reads no
weights but those of the norms, so the others may be streamed, patched or quantized.

A window may hold guesses. What wrong ones leave in the cache lies after the tokens that are known, where no token attends to
it, and the next window overwrites it.
"""

import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn.functional import pad, scaled_dot_product_attention

from ..placement.streams import side_stream
from .ar_model import ArModel
from .draw import Sampling, draw

log = logging.getLogger(__name__)
ALIGNMENT = 16  # slots of the cache


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

    The first prompt_length tokens of the cache are the prompt's. positions: [3, N] of the tokens that may be fed. The rotary
    embedding of each is x * cosine + x[..., rotate_index] * sine, with cosine and sine [N, head width] and rotate_index [head
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


class Window(NamedTuple):
    """Where the W tokens of a pass stand.

    slots: their places in the cache, a slice that all sequences share or [B, W] int64. attended: how many slots of the cache the
    last of them attends to. mask: added to the scores, [B or 1, 1, W * G, attended] with G the query heads of a key/value head,
    for one token [B or 1, 1, 1, attended], or None where all of these slots are filled. cosine, sine: [B or 1, W, 1, head width].
    """

    slots: slice | torch.Tensor
    attended: int
    mask: torch.Tensor | None
    cosine: torch.Tensor
    sine: torch.Tensor

    def write(self, cache: torch.Tensor, rows: torch.Tensor) -> None:
        """rows: keys or values of the window, [B, W, heads, head width]."""
        if isinstance(self.slots, slice):
            cache[:, :, self.slots] = rows.transpose(1, 2)
        else:
            cache[torch.arange(len(rows), device=rows.device)[:, None], :, self.slots] = rows


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
    """[1, heads, S, width] -> [batch, heads, S + tokens or a little more, width], zeros after the prompt.

    A multiple of ALIGNMENT: attention would pad a mask of another width anew in each layer.
    """
    _, heads, prompt_length, width = prompt.shape
    cache = prompt.new_zeros(batch, heads, math.ceil((prompt_length + tokens) / ALIGNMENT) * ALIGNMENT, width)
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
    """[..., D] -> [..., V] float32, V the codebook: the head is wider, and its other ids must never stand inside a grid."""
    return ar.model.lm_head(hidden)[..., : ar.codebook_size].float()


def decode_window(state: DecodeState, tokens: torch.Tensor, window: Window) -> torch.Tensor:
    """Feed W tokens of each sequence, [B, W]. Writes into the cache, returns the logits after each, [B, W, V] float32.

    Query heads that share a key/value head go through the attention as if they were queries at several positions, so no
    key or value is repeated.
    """
    batch, rows = tokens.shape
    x = state.ar.model.get_input_embeddings()(tokens.flatten()).to(state.ar.dtype)  # [B * W, D]
    for layer in state.layers:
        keys, values = layer.keys, layer.values
        _, heads, _, width = keys.shape
        normed = layer.norm(x)
        rotated = torch.cat((layer.q(normed), layer.k(normed)), dim=-1).view(batch, rows, -1, width)  # query heads, key heads
        rotated = rotated * window.cosine + rotated[..., state.rotate_index] * window.sine
        window.write(keys, rotated[:, :, -heads:])
        window.write(values, layer.v(normed).view(batch, rows, heads, width))
        queries = rotated[:, :, :-heads].reshape(batch, rows, heads, -1, width).transpose(1, 2)  # [B, heads, W, G, width]
        mixed = scaled_dot_product_attention(
            queries.reshape(batch, heads, -1, width).to(keys.dtype),
            keys[:, :, : window.attended],
            values[:, :, : window.attended],
            attn_mask=window.mask,
            scale=layer.scaling,
        )
        mixed = mixed.view(batch, heads, rows, -1, width).transpose(1, 2)
        x = x + layer.attended_norm(layer.o(mixed.reshape(batch * rows, -1)))
        gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
        x = x + layer.mlp_out_norm(layer.down(up * layer.activation(gate)))
    return _logits(state.ar, _rms_norm(state.ar.model.model.language_model.norm)(x)).view(batch, rows, -1)


def filled_window(state: DecodeState, steps: torch.Tensor, rows: int) -> Window:
    """The window over the filled part of the cache only. steps: of the first token of each sequence, [B] int64 on the CPU."""
    first, last = int(steps.min()), int(steps.max())
    attended = state.prompt_length + last + rows
    if first == last:
        slots = slice(state.prompt_length + first, attended)
        cosine, sine = (table[None, first : first + rows, None] for table in (state.cosine, state.sine))
        mask = None if rows == 1 else _mask(state, torch.arange(slots.start, slots.stop)[None], attended)
        return Window(slots, attended, mask=mask, cosine=cosine, sine=sine)
    return _window(state, steps, rows, attended)


def masked_window(state: DecodeState, steps: torch.Tensor, rows: int) -> Window:
    """The window over the whole cache, with the steps as data, [B] int64."""
    return _window(state, steps, rows, attended=state.layers[0].keys.shape[2])


def _window(state: DecodeState, steps: torch.Tensor, rows: int, attended: int) -> Window:
    steps = steps[:, None] + torch.arange(rows, device=steps.device)  # [B, W]
    slots = steps + state.prompt_length
    cosine, sine = (table[steps][:, :, None] for table in (state.cosine, state.sine))
    return Window(slots, attended, mask=_mask(state, slots, attended), cosine=cosine, sine=sine)


def _mask(state: DecodeState, slots: torch.Tensor, attended: int) -> torch.Tensor:
    """A token attends to its own slot and all before it. slots: [B or 1, W]. Returns the mask as in Window."""
    config = state.ar.model.config.text_config
    sharing = config.num_attention_heads // config.num_key_value_heads
    hidden = torch.arange(attended, device=slots.device) > slots[:, :, None]  # [B or 1, W, attended]
    mask = torch.zeros(hidden.shape, dtype=state.layers[0].keys.dtype, device=slots.device).masked_fill(hidden, -torch.inf)
    return (mask if slots.shape[1] == 1 else mask.repeat_interleave(sharing, dim=1))[:, None]


Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(tokens [B, W], the step of the first of each sequence [B] int64, noise [B, W, V]), on the model's device -> the token drawn
after each, [B, W] int64. A recorded step writes them to the same memory each time."""


@contextmanager
def decoder(state: DecodeState, sampling: Sampling) -> Iterator[Step]:
    """The fastest way to run a pass and draw on the state's device; but for rounding, all ways give the same tokens.

    On the CPU a token attends to the filled part of the cache. Elsewhere it attends to all of it behind a mask, so that
    every pass of as many tokens is the same operations on the same memory and can be recorded as a CUDA graph. Where the
    weights do not keep their addresses, or recording failed before, passes are not recorded.
    """
    ar = state.ar
    if ar.device.type == "cpu":
        yield PlainSteps(state, sampling, filled_window)
    elif ar.device.type == "cuda" and ar.weights_are_static and ar.may_record and ar.device not in ar.cannot_record:
        steps = RecordedSteps(state, sampling)
        try:
            yield steps
        finally:
            steps.reset()
    else:
        yield PlainSteps(state, sampling, masked_window)


@dataclass(frozen=True)
class PlainSteps:
    """Passes, each as its operations. window: over which part of the cache, filled_window or masked_window."""

    state: DecodeState
    sampling: Sampling
    window: Callable[[DecodeState, torch.Tensor, int], Window]

    def __call__(self, tokens: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        window = self.window(self.state, steps, tokens.shape[1])
        return draw(self.sampling, decode_window(self.state, tokens, window), noise)


RECORD_AFTER = 2  # plain passes of a size in a run: recording takes about as long as a few of them


class RecordedSteps:
    """Passes as CUDA graphs: one for each number of tokens that a run uses often, over the same memory.

    A pass that waits for the device cannot be recorded. That is found out beforehand, by a pass that may not wait. Where that or
    recording fails, the model's passes are not recorded on this device again.
    """

    def __init__(self, state: DecodeState, sampling: Sampling):
        self.plain, self.ar, self.device = PlainSteps(state, sampling, masked_window), state.ar, state.ar.device
        self.recordings: dict[int, Recording] = {}
        self.uses: Counter[int] = Counter()  # of each number of tokens

    def __call__(self, tokens: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        rows = tokens.shape[1]
        self.uses[rows] += 1
        if self.uses[rows] > RECORD_AFTER and rows not in self.recordings and self.device not in self.ar.cannot_record:
            self._record(tokens, steps, noise)
        return self.recordings.get(rows, self.plain)(tokens, steps, noise)

    def reset(self) -> None:
        """Free the graphs while the memory that they use is still there."""
        for recording in self.recordings.values():
            recording.graph.reset()

    def _record(self, *first: torch.Tensor) -> None:
        """Record a pass of as many tokens as these inputs have. No other thread may wait for a GPU meanwhile."""
        inputs = [value.clone() for value in first]
        main, before = torch.cuda.current_stream(self.device), torch.cuda.get_sync_debug_mode()
        side, graph = side_stream(self.device, "recording"), torch.cuda.CUDAGraph()
        pool = next((recording.graph.pool() for recording in self.recordings.values()), None)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                self.plain(*inputs)  # writes where the next pass will; libraries allocate their workspaces
                torch.cuda.set_sync_debug_mode("error")
                self.plain(*inputs)
            torch.cuda.set_sync_debug_mode(before)
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                drawn = self.plain(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("decoding without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
            self.ar.cannot_record.add(self.device)
        else:
            self.recordings[inputs[0].shape[1]] = Recording(graph, inputs, drawn)
        finally:
            torch.cuda.set_sync_debug_mode(before)
            torch.cuda.set_stream(main)  # a recording that fails leaves its own
            main.wait_stream(side)


class Recording(NamedTuple):
    """A pass as a CUDA graph, with the memory that it reads (tokens, steps and noise) and the one that it writes."""

    graph: "torch.cuda.CUDAGraph"
    inputs: Sequence[torch.Tensor]
    drawn: torch.Tensor

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.drawn
