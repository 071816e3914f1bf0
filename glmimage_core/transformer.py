"""diffusers' DiT with its forward cut where a run repeats itself.

Its own forward projects the prior tokens, the glyph embeddings and the time embedding in every step. Here they are three
methods, called as often as their inputs change, and what is left is the forward. Importing this imports diffusers.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from diffusers import GlmImageTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend

if TYPE_CHECKING:
    from .denoise import Dit, ReferenceLayer, WrittenLayer
    from .step_cache import Branch


# By diffusers' names. Each gets queries, keys and values after the rotary embedding and with the references joined.
ATTENTION_BACKENDS = {"sdpa": "native", "cudnn": "_native_cudnn", "flash": "flash", "sage": "sage"}
PACKAGES = {"flash": "flash-attn", "sage": "sageattention"}


class GlmImageDit(GlmImageTransformer2DModel):
    """The same weights, names and arithmetic. D is the width of the stream, T the tokens of the picture."""

    def prior_states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prior tokens at the DiT's grid, [B, T] int64, as what is added to the image's tokens: [B, T, D]."""
        return self.prior_projector(self.prior_token_embedding(tokens))

    def dropped_prior_state(self, device: torch.device) -> torch.Tensor:
        """What is added for a prior token that is dropped, for each the same: [1, 1, D]."""
        any_token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        return self.prior_projector(self.prior_token_embedding(any_token) * 0.0)

    def glyph_states(self, glyphs: torch.Tensor) -> torch.Tensor:
        """Glyph embeddings [B, L, text_embed_dim] as the text's tokens: [B, L, D]."""
        return self.glyph_projector(glyphs)

    def time_states(self, timesteps: torch.Tensor, width: int, height: int, dtype: torch.dtype) -> torch.Tensor:
        """The conditioning of the norms at timesteps [N] for a picture of width x height pixels: [N, time_embed_dim]."""
        size = torch.cat([torch.full_like(timesteps[:, None], side, dtype=torch.float32) for side in (height, width)], dim=1)
        return self.time_condition_embed(timesteps, size, torch.zeros_like(size), dtype)

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        prior: torch.Tensor,
        glyphs: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        kv_caches: "Sequence[ReferenceLayer] | Sequence[WrittenLayer] | None" = None,
        steps_before: "Branch | None" = None,
    ) -> torch.Tensor:
        """x: [B, 16, h, w] noised latents. The rest as the methods above and `rope` give it, for B pictures.

        With what the steps before left in `steps_before`, all blocks but the first may be skipped. Returns the velocity,
        [B, 16, h, w].
        """
        first, *others = zip(self.transformer_blocks, kv_caches or [None] * len(self.transformer_blocks), strict=True)
        embedded = self.image_projector(x) + prior  # [B, T, D]
        image, text = self._through([first], embedded, glyphs, time, rope)
        rest = None if steps_before is None else steps_before.rest(change=image - embedded)
        if rest is None:
            begun = image
            image, text = self._through(others, image, text, time, rope)
            if steps_before is not None:
                steps_before.keep(image - begun)
        else:
            image = image + rest
        patches = self.proj_out(self.norm_out(image, time))  # [B, T, patch * patch * 16]
        size = self.config.patch_size
        batch, _, height, width = x.shape
        patches = patches.view(batch, height // size, width // size, -1, size, size)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)

    @staticmethod
    def _through(blocks, image, text, time, rope):
        for block, kv_cache in blocks:
            image, text = block(image, text, time, rope, kv_cache=kv_cache)
        return image, text


def check_attention_backend(attention: str, device: torch.device) -> None:
    """Raise where attention cannot be computed so: ImportError, with what to install, or ValueError for a device."""
    if attention == "auto":
        return
    if attention not in ATTENTION_BACKENDS:
        raise ValueError(f"attention {attention!r} is not one of auto, {', '.join(ATTENTION_BACKENDS)}")
    try:
        with attention_backend(ATTENTION_BACKENDS[attention]):
            pass
    except RuntimeError as error:
        raise ImportError(
            f"attention {attention} needs {PACKAGES.get(attention, 'a newer PyTorch')}, which is missing or too old; install it, "
            f"or choose auto or sdpa ({error})"
        ) from error
    if attention != "sdpa" and device.type != "cuda":
        raise ValueError(f"attention {attention} runs on CUDA, not on {device.type}; choose auto or sdpa")


def use_attention_backend(model: GlmImageDit, attention: str, device: torch.device) -> None:
    """Have a model's attention computed by one of ATTENTION_BACKENDS; auto leaves it to diffusers."""
    check_attention_backend(attention, device)
    if attention in PACKAGES and model.dtype == torch.float32:
        raise ValueError(
            f"attention {attention} computes in bfloat16 and float16, and this DiT is in float32; choose another dtype"
        )
    if attention != "auto":
        backend = ATTENTION_BACKENDS[attention]
        with attention_backend(backend):  # afterwards, other models have theirs again, which diffusers would change too
            model.set_attention_backend(backend)


def check_compiler() -> None:
    """Raise ImportError where torch.compile cannot make kernels for the device of this machine."""
    if torch.cuda.is_available():
        if find_spec("triton") is None:
            raise ImportError("compile needs Triton, which is missing: pip install triton (on Windows, triton-windows)")
    elif not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ImportError("compile needs a C++ compiler, and none was found; install one, or switch compile off")


def compile_blocks(model: GlmImageDit) -> None:
    """Have each block compiled when it first runs, which takes a minute or so; all of them share what is compiled."""
    check_compiler()
    for block in model.transformer_blocks:
        block.compile()


def computing(dit: "Dit", attention: str, compiled: bool, device: torch.device) -> "Dit":
    """Have a DiT compute so on a device: its attention by a backend, its blocks compiled. Raises as the checks do."""
    use_attention_backend(dit.model, attention, device)
    if compiled:
        compile_blocks(dit.model)
    return replace(dit, attention=attention, compiled=compiled)
