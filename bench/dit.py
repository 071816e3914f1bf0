"""The DiT: seconds a guided step against diffusers' pipeline and against the step's arithmetic at the machine's rate.

A step is a positive and a negative pass; what a run does once is shared out over its steps. The floor is the products of the
DiT's layers, as operations, divided by the rate of a large matrix product.
"""

import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from PIL import Image

from ..glmimage_core.diffusion import dit_token_count, image_seeds
from ..glmimage_core.glm_image.denoise import sample
from ..glmimage_core.glm_image.dit import Dit
from .inputs import GLYPHS, random_glyphs, random_prior, random_reference
from .measure import Case, Stopwatch, alternate, product_rate, seconds
from .models import Models
from .reference import given_prior, given_reference, pipeline
from .table import Table, compared


def check(options: Namespace) -> None:
    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; at least one is needed")


def measure(options: Namespace, models: Models) -> Iterator[Table]:
    dit = models.dit()
    pipe = pipeline(models.folder, dit, models.vae()) if options.against else None
    rate = product_rate(options.device, options.dtype)
    rows = []
    for case in options.cases:
        run = partial(_Run, dit, pipe, case, options)
        text, edit = run(False), run(True)
        ways = {"text-to-image": text.ours, "edit, new reference": edit.new, "edit, same reference": edit.ours}
        if pipe:
            ways |= {"text": text.theirs, "edit": edit.theirs}
        times = {name: statistics.median(each) for name, each in alternate(ways, options.rounds, options.seed).items()}
        for name, reference, flops in (
            ("text-to-image", "text", text.flops),
            ("edit, new reference", "edit", edit.flops + edit.once / options.steps),
            ("edit, same reference", "edit", edit.flops),
        ):
            floor = flops / rate
            rows.append({"run": name} | case.columns | compared(times[name], times.get(reference), floor, "s/step"))
    title = (
        f"DiT, cfg 1.5, {options.steps} steps; reference is the pipeline, floor the step's products at {rate / 1e12:.3g} TFLOP/s"
    )
    yield Table(title, rows)


class _Run:
    """Runs of one case, each giving its seconds a step."""

    def __init__(self, dit: Dit, pipe, case: Case, options: Namespace, edit: bool):
        self.dit, self.pipe, self.case, self.steps = dit, pipe, case, options.steps
        config = dit.model.config
        rows = config.prior_vq_quantizer_codebook_size
        self.prior = random_prior(rows, case, options.seed)
        self.positive, self.negative = random_glyphs(config.text_embed_dim, options.seed)
        self.references = [random_reference(rows, case.width, case.height, options.seed)] if edit else []
        tokens = dit_token_count(case.width, case.height) if edit else 0
        self.flops = step_flops(config, case, tokens)
        self.once = forward_flops(config, tokens)

    def ours(self, seed: int) -> float:
        seeds = image_seeds(seed, self.case.batch)
        given = (self.prior, self.positive, self.negative, seeds)
        return self._a_step(partial(sample, self.dit, *given, self.steps, references=self.references))

    def new(self, seed: int) -> float:
        self.dit.cached_references.clear()
        return self.ours(seed)

    def theirs(self, seed: int) -> float:
        """The pipeline's loop; that it encodes the reference's picture in every run is not counted."""
        device, batch = self.dit.device, self.case.batch
        arguments = given_prior(self.prior.tokens, device)
        for reference in self.references:
            picture = Image.new("RGB", (reference.width, reference.height))
            arguments |= given_reference(picture, reference.vision_tokens, batch, device)
        run = partial(
            self.pipe,
            **arguments,
            prompt_embeds=self.positive.expand(batch, -1, -1).to(device, self.dit.dtype),
            negative_prompt_embeds=self.negative.expand(batch, -1, -1).to(device, self.dit.dtype),
            width=self.case.width,
            height=self.case.height,
            num_inference_steps=self.steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        )
        with Stopwatch({"encode": [(self.pipe.vae, "encode")]}, device) as times:
            return self._a_step(run) - times["encode"] / self.steps

    def _a_step(self, run: Callable[[], object]) -> float:
        return seconds(run, self.dit.device) / self.steps


def step_flops(config, case: Case, cached_tokens: int = 0) -> int:
    """Floating point operations of the layers' products in a guided step, whose positive pass sees cached tokens."""
    tokens = dit_token_count(case.width, case.height) + GLYPHS
    return case.batch * (forward_flops(config, tokens, cached_tokens) + forward_flops(config, tokens))


def forward_flops(config, tokens: int, cached_tokens: int = 0) -> int:
    """A pass over so many image and text tokens: per layer and token four attention projections and a feed-forward of four
    widths, and the attention over all tokens. The embeddings, the last projection and AdaLN are a percent and left out."""
    width = config.num_attention_heads * config.attention_head_dim
    return config.num_layers * (2 * 12 * width**2 * tokens + 4 * width * tokens * (tokens + cached_tokens))
