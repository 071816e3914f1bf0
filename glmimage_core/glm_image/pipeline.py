"""GLM-Image from Python: the method in one screen.

glm = GlmImage.load("models/diffusers/GLM-Image", device="cuda")   # or GlmImage.nano()
plan = glm.plan('A red star, the word "HI" at the top.', 1024, 1024, seed=0)
glm.paint(plan, seed=0, steps=50)[0].save("star.png")

room = glm.reference(Image.open("room.png"))
glm.paint(glm.plan("It is night.", references=[room]), references=[room])[0].save("night.png")
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from typing_extensions import Self

from ..component import Component
from ..diffusion import image_seeds
from ..images import from_picture, to_pictures
from ..masks import composite
from ..placement.prediction import Job
from ..placement.residency import Residency, current
from ..progress import Progress, no_progress
from ..quoted import find_quoted_texts
from ..vae import TILE_PX, Vae, decode, encode, tiles_by_size, vae_decode_bytes, vae_encode_bytes
from .ar_model import ArModel, fit, vision_tokens
from .denoise import Approximations, sample
from .dit import Dit
from .draw import Sampling, Variation
from .files.components import BUILT_IN, LAYOUT, NANO, is_checkpoint
from .files.load import load_ar, load_dit, load_glyph_encoder, load_vae
from .glyphs import GlyphEncoder, encode_glyph_texts
from .inpaint import latent_mask, padded, reference_plan, to_be_read
from .lookahead import AUTO
from .memory import dit_bytes, glyph_bytes, most_rows, prior_bytes, vision_bytes
from .plans.from_picture import plan_size, prior_from_pictures, read_size
from .prior import Prior, generate_prior
from .references import Reference, check_references, latents_of, sizes_of
from .regrow import check_regrow, forced_tokens
from .sketch import expand_sketches, sketch_of, sketch_priors
from .tiles import Tiling, tiles_of

log = logging.getLogger(__name__)
SIDE, NANO_SIDE = 1024, 256  # pixels along each side of a picture without references whose size is not given


@dataclass(eq=False)
class GlmImage:
    """A checkpoint that computes on one device. Make one with `load` or `nano`.

    Each model is loaded to the CPU when a stage first needs it. Before a stage it moves to the device, where it stays while
    there is room; a DiT that does not fit is streamed block by block. quantization: of the AR model and the DiT.
    """

    checkpoint: Path
    device: torch.device
    dtype: str = "auto"
    quantization: str = "none"
    side: int = SIDE  # pixels

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str | torch.device = "cpu",
        *,
        dtype: str = "auto",
        quantization: str = "none",
    ) -> Self:
        """A checkpoint folder in diffusers' layout.

        Raises FileNotFoundError for a folder that holds no GLM-Image. What is wrong with a component is raised when a stage
        first needs it.
        """
        if not is_checkpoint(Path(checkpoint)):
            raise FileNotFoundError(f"there is no GLM-Image checkpoint in {Path(checkpoint).absolute()}; {LAYOUT}")
        return cls(Path(checkpoint), torch.device(device), dtype=dtype, quantization=quantization)

    @classmethod
    def nano(cls, device: str | torch.device = "cpu") -> Self:
        """The very small model that comes with the pack: coloured shapes and words, 192 to 512 pixels a side."""
        return cls(BUILT_IN[NANO], torch.device(device), dtype="float32", side=NANO_SIDE)

    @cached_property
    def residency(self) -> Residency:
        return Residency(self.device)

    @cached_property
    def ar(self) -> ArModel:
        return load_ar(self.checkpoint, self.dtype, quantization=self.quantization, device=self.device)

    @cached_property
    def glyph_encoder(self) -> GlyphEncoder:
        return load_glyph_encoder(self.checkpoint, self.dtype, device=self.device)

    @cached_property
    def dit(self) -> Dit:
        return load_dit(self.checkpoint, self.dtype, quantization=self.quantization, device=self.device)

    @cached_property
    def vae(self) -> Vae:
        return load_vae(self.checkpoint, self.dtype, device=self.device)

    def reference(self, picture: Image.Image) -> Reference:
        """A picture of any size as both models see it, for `plan` and `paint`."""
        fitted = fit(self.ar, picture)
        working = vision_bytes(self.ar.model.config, self.ar.dtype.itemsize, *fitted.size)
        with self._placed(self.ar, "vision", working) as ar:
            tokens = vision_tokens(ar, fitted)
        with self._placed_vae(vae_encode_bytes, *fitted.size) as (vae, tiled):
            latents = latents_of(vae, fitted, tiled)
        return Reference(*fitted.size, tokens, latents, codebook=self.ar.codebook, space=self.vae.space)

    def plan(
        self,
        prompt: str,
        width: int | None = None,
        height: int | None = None,
        *,
        seed: int = 0,
        batch: int = 1,
        references: Sequence[Reference] = (),
        sampling: Sampling = Sampling(),  # noqa: B008, immutable
        lookahead: int = AUTO,
        forced: torch.Tensor | None = None,
        variation: Variation | None = None,
        progress: Progress = no_progress,
    ) -> Prior:
        """The prior tokens of `batch` pictures: their composition. Takes what `generate_prior` takes and raises as it does.

        width, height: pixels; by default those of the first reference, else 1024 x 1024, or 256 x 256 for nano. lookahead: tokens
        a pass, by default as many as are fastest.
        """
        check_references(references, codebook=self.ar.codebook)
        default = (references[0].width, references[0].height) if references else (self.side, self.side)
        job = Job(width or default[0], height or default[1], batch, sizes_of(references))
        drawn = {"seed": seed, "batch": batch, "sampling": sampling, "references": references, "forced": forced}
        return self._planned(generate_prior, prompt, job, lookahead=lookahead, variation=variation, progress=progress, **drawn)

    def sketch(self, prompt: str, width: int | None = None, height: int | None = None, *, batch: int = 4, **settings) -> Prior:
        """The previews of `batch` plans alone, for `expand`. Takes what `plan` takes but references, and raises as it does."""
        return self._planned(sketch_priors, prompt, Job(width or self.side, height or self.side, batch), batch=batch, **settings)

    def expand(self, sketches: Prior, *, copies: int = 1, **settings) -> Prior:
        """The plans that begin with sketches, or with the previews of plans. Takes and raises what `expand_sketches` does."""
        sketches = sketch_of(sketches)
        job = Job(*sketches.expands_to, copies * sketches.batch)

        def expanded(ar: ArModel, prompt: str, *size: int, **drawn) -> Prior:
            return expand_sketches(ar, sketches, prompt, copies=copies, **drawn)

        return self._planned(expanded, sketches.prompt, job, **settings)

    def _planned(self, write: Callable[..., Prior], prompt: str, job: Job, *, seed: int = 0, **settings) -> Prior:
        """What `write(ar, prompt, width, height, seed=, most_rows=, ...)` plans where the AR model has room for the job."""
        for warning in self.ar.trained_on.warnings(job.width, job.height, prompt):
            log.warning(warning)
        job = job._replace(prompt_tokens=len(prompt.encode()))
        config, itemsize = self.ar.model.config, self.ar.dtype.itemsize
        with self._placed(self.ar, "language", prior_bytes(config, itemsize, job)) as ar:
            free = None if self.device.type == "cpu" else self.residency.free_bytes()
            rows = most_rows(config, itemsize, job, free)
            return write(ar, prompt, job.width, job.height, seed=seed, most_rows=rows, **settings)

    def plan_of(self, picture: Image.Image, width: int = 0, height: int = 0, *, prompt: str = "") -> Prior:
        """A picture's own plan. width, height: pixels; 0 follows from the picture, see `plan_size`.

        prompt: words for the picture, in which `paint` finds the texts to be drawn. Raises ValueError for a bad size.
        """
        width, height = plan_size(picture.size, width, height)
        working = vision_bytes(self.ar.model.config, self.ar.dtype.itemsize, *read_size(self.ar, width, height))
        with self._placed(self.ar, "vision", working) as ar:
            return prior_from_pictures(ar, [picture], width, height, prompt=prompt)

    def regrow(self, plan: Prior, mask: torch.Tensor, prompt: str, *, batch: int | None = None, **settings) -> Prior:
        """A plan whose tokens under a mask are drawn anew, for a prompt. Takes and raises what `regrow_prior` does.

        settings: seed, sampling, references, lookahead and progress, as `plan` takes them.
        """
        check_regrow(self.ar, plan, mask, batch=batch)
        forced = forced_tokens(plan, mask, with_preview=not settings.get("references"))
        batch = batch or len(forced)
        return self.plan(prompt, plan.width, plan.height, batch=batch, forced=forced.expand(batch, -1), **settings)

    def inpaint(
        self,
        picture: Image.Image,
        mask: torch.Tensor,
        prompt: str,
        *,
        erase: bool = False,
        references: Sequence[Reference] = (),
        seed: int = 0,
        steps: int = 50,
        cfg: float = 1.5,
        glyph_texts: Sequence[str] | None = None,
        feather: int = 4,
    ) -> Image.Image:
        """A picture that is planned and painted anew under a mask, [H, W] of any size; its other pixels stay what they are.

        erase: hide what is under the mask from the models, for a prompt that puts something else there. references: further ones,
        after the picture. feather: pixels of the edge, inside the mask. Raises as `plan` and `paint` do.
        """
        image = from_picture(picture)
        read, mask = to_be_read(self.ar, image, mask, erase=erase)
        reference = self.reference(read)
        references = (reference, *references)
        plan = self.regrow(reference_plan(reference), mask, prompt, seed=seed, references=references)
        painted = self.paint_tensor(
            plan,
            seed=seed,
            steps=steps,
            cfg=cfg,
            references=references,
            glyph_texts=glyph_texts,
            latents=reference.latents,
            mask=latent_mask(mask, plan.width, plan.height),
        )
        return to_pictures(composite(image, painted, mask, feather))[0]

    def outpaint(
        self, picture: Image.Image, prompt: str, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, **settings
    ) -> Image.Image:
        """A picture with so many pixels more on its sides, planned and painted; the old ones stay what they are.

        settings: as `inpaint` takes them.
        """
        whole, mask = padded(from_picture(picture), left=left, top=top, right=right, bottom=bottom)
        return self.inpaint(to_pictures(whole)[0], mask, prompt, erase=True, **settings)

    def enlarge(
        self,
        picture: Image.Image,
        width: int = 0,
        height: int = 0,
        *,
        prompt: str = "",
        seed: int = 0,
        steps: int = 50,
        cfg: float = 1.5,
        denoise: float = 0.6,
        glyph_texts: Sequence[str] | None = None,
        tiling: Tiling | None = None,
    ) -> Image.Image:
        """A picture painted anew at another size, with the same things in the same places: by its own plan at that size.

        width, height: pixels, 0 follows from the picture as in `plan_of`. denoise: how much of the schedule is painted; below 1
        it begins with the resized picture. tiling: to paint in tiles. prompt, glyph_texts: where `paint` finds the texts to be
        drawn. Raises as `plan_of` and `paint` do.
        """
        plan = self.plan_of(picture, width, height, prompt=prompt)
        resized = picture.convert("RGB").resize((plan.width, plan.height), Image.Resampling.LANCZOS)
        with self._placed_vae(vae_encode_bytes, plan.width, plan.height) as (vae, tiled):
            latents = encode(vae, from_picture(resized), tiled)
        settings = {"glyph_texts": glyph_texts, "tiling": tiling, "denoise": denoise, "latents": latents}
        return to_pictures(self.paint_tensor(plan, seed=seed, steps=steps, cfg=cfg, **settings))[0]

    def paint(
        self,
        plan: Prior,
        *,
        seed: int = 0,
        steps: int = 50,
        cfg: float = 1.5,
        references: Sequence[Reference] = (),
        glyph_texts: Sequence[str] | None = None,
        avoided_texts: Sequence[str] = (),
        approximations: Approximations = Approximations(),  # noqa: B008, immutable
        progress: Progress = no_progress,
    ) -> list[Image.Image]:
        """The pictures that a plan composes. Image i has seed + i. Raises as `sample` does.

        references: those of the plan. glyph_texts: the texts to be drawn; by default those in quotation marks in the plan's
        prompt. avoided_texts: what guidance steers away from as drawn text.
        """
        painted = self.paint_tensor(
            plan,
            seed=seed,
            steps=steps,
            cfg=cfg,
            references=references,
            glyph_texts=glyph_texts,
            avoided_texts=avoided_texts,
            approximations=approximations,
            progress=progress,
        )
        return to_pictures(painted)

    def paint_tensor(
        self,
        plan: Prior,
        *,
        seed: int = 0,
        steps: int = 50,
        cfg: float = 1.5,
        references: Sequence[Reference] = (),
        glyph_texts: Sequence[str] | None = None,
        avoided_texts: Sequence[str] = (),
        approximations: Approximations = Approximations(),  # noqa: B008, immutable
        latents: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        denoise: float = 1.0,
        tiling: Tiling | None = None,
        progress: Progress = no_progress,
    ) -> torch.Tensor:
        """What `paint` paints as [B, height, width, 3] float32 in 0..1. latents, mask, denoise: what stays, as `sample` takes
        them. tiling: to paint in tiles."""
        check_references(references, space=self.dit.space)
        texts = find_quoted_texts(plan.prompt) if glyph_texts is None else list(glyph_texts)
        sides = [texts, list(avoided_texts)]
        working = max(glyph_bytes(self.glyph_encoder.model.config, self.glyph_encoder.dtype.itemsize, side) for side in sides)
        with self._placed(self.glyph_encoder, "model", working) as encoder:
            positive, negative = (encode_glyph_texts(encoder, side) for side in sides)
        tile, *_ = tiles_of(plan.width, plan.height, tiling)
        job = Job(
            *(tile.width, tile.height, plan.batch, sizes_of(references)),
            glyph_tokens=positive.shape[1],
            guided=cfg != 1,
            one_length=positive.shape == negative.shape,
            step_cache=approximations.step_cache > 0,
        )
        config, itemsize = self.dit.model.config, self.dit.dtype.itemsize
        caches_on_device = self.residency.fits(self.dit.model, dit_bytes(config, itemsize, job))
        with self._placed(self.dit, "model", dit_bytes(config, itemsize, job, caches_on_device)) as dit:
            latents = sample(
                replace(dit, tiling=tiling),
                plan,
                positive,
                negative,
                seeds=image_seeds(seed, plan.batch),
                steps=steps,
                cfg=cfg,
                references=references,
                approximations=approximations,
                latents=latents,
                mask=mask,
                denoise=denoise,
                caches_on_device=caches_on_device,
                progress=progress,
            )
        with self._placed_vae(vae_decode_bytes, plan.width, plan.height) as (vae, tiled):
            return decode(vae, latents, tiled)

    @contextmanager
    def _placed(self, component: Component, part: str, working_bytes: int) -> Iterator[Component]:
        """A part of a component on the device, with room to work, for the length of a with block."""
        blocks = component.blocks
        with self.residency.hold(component.parts[part], working_bytes, blocks) as device, current(device):
            yield replace(component.on(device), weights_are_static=not blocks)  # blocks may come one by one

    @contextmanager
    def _placed_vae(self, stage_bytes: Callable[..., int], width: int, height: int) -> Iterator[tuple[Vae, bool]]:
        """The VAE with room for a picture of width x height pixels, and whether to tile it."""
        needed = [
            stage_bytes(self.vae.model.config, self.vae.dtype.itemsize, *size) for size in ((width, height), (TILE_PX, TILE_PX))
        ]
        tiled = tiles_by_size("auto", width, height, device=self.device) or not self.residency.fits(self.vae.model, needed[0])
        with self._placed(self.vae, "model", needed[tiled]) as vae:
            yield vae, tiled
