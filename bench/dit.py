"""The DiT: seconds a guided step against diffusers' pipeline and against the step's arithmetic at the machine's rate.

A step is a positive and a negative pass. What a run does once is divided by its number of steps. The floor is the operations in
the DiT's layers, divided by the rate of a large matrix product.
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
from .libraries import pipeline, prior_arguments, reference_arguments
from .measure import Case, Stopwatch, alternate, product_rate, seconds
from .models import RandomGlmImage
from .table import Table, compared


def check(options: Namespace) -> None:
    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; use 1 or more")


def measure(options: Namespace, glm: RandomGlmImage) -> Iterator[Table]:
    dit = glm.dit
    pipe = pipeline(glm.checkpoint, dit, glm.vae) if options.against else None
    rate = product_rate(options.device, options.dtype)
    title = (
        f"DiT, cfg 1.5, {options.steps} steps; reference is the pipeline, floor the step's products at {rate / 1e12:.3g} TFLOP/s"
    )
    rows = []
    for case in options.cases:
        text, edit = (_Run(dit, pipe, case, options, edit=edit) for edit in (False, True))
        runs = {"text-to-image": text.ours, "edit, new reference": edit.new_reference, "edit, same reference": edit.ours}
        if pipe:
            runs |= {"text": text.theirs, "edit": edit.theirs}
        times = {name: statistics.median(rounds) for name, rounds in alternate(runs, options.rounds, options.seed).items()}
        for name, reference, flops in (
            ("text-to-image", "text", text.flops),
            ("edit, new reference", "edit", edit.flops + edit.reference_flops / options.steps),
            ("edit, same reference", "edit", edit.flops),
        ):
            floor = flops / rate
            rows.append({"run": name} | case.columns | compared(times[name], times.get(reference), floor, "s/step"))
        yield Table(title, rows)


class _Run:
    """The runs of one case. Each method runs one with a seed and returns its seconds a step."""

    def __init__(self, dit: Dit, pipe, case: Case, options: Namespace, *, edit: bool):
        self.dit, self.pipe, self.case, self.steps = dit, pipe, case, options.steps
        config = dit.model.config
        rows = config.prior_vq_quantizer_codebook_size
        self.prior = random_prior(rows, case, options.seed)
        self.positive, self.negative = random_glyphs(config.text_embed_dim, options.seed)
        self.references = [random_reference(rows, case.width, case.height, options.seed)] if edit else []
        tokens = dit_token_count(case.width, case.height) if edit else 0
        self.flops = step_flops(config, case, tokens)
        self.reference_flops = forward_flops(config, tokens)

    def ours(self, seed: int) -> float:
        settings = {"seeds": image_seeds(seed, self.case.batch), "steps": self.steps, "references": self.references}
        return self._seconds_a_step(partial(sample, self.dit, self.prior, self.positive, self.negative, **settings))

    def new_reference(self, seed: int) -> float:
        self.dit.cached_references.clear()
        return self.ours(seed)

    def theirs(self, seed: int) -> float:
        """The pipeline's loop. It encodes the picture of the reference in every run; that time is subtracted."""
        device, batch = self.dit.device, self.case.batch
        arguments = prior_arguments(self.prior.tokens, device)
        for reference in self.references:
            picture = Image.new("RGB", (reference.width, reference.height))
            arguments |= reference_arguments(picture, reference.vision_tokens, batch=batch, device=device)
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
        stopwatch = Stopwatch(device)
        with stopwatch.timed_methods({"encode": [(self.pipe.vae, "encode")]}):
            seconds_a_step = self._seconds_a_step(run)
        encoding = stopwatch.times["encode"] if self.references else 0.0
        return seconds_a_step - encoding / self.steps

    def _seconds_a_step(self, run: Callable[[], object]) -> float:
        return seconds(run, self.dit.device) / self.steps


def step_flops(config, case: Case, cached_tokens: int = 0) -> int:
    """Floating point operations of a guided step, in products. The positive pass also attends to the cached tokens."""
    tokens = dit_token_count(case.width, case.height) + GLYPHS
    return case.batch * (forward_flops(config, tokens, cached_tokens) + forward_flops(config, tokens))


def forward_flops(config, tokens: int, cached_tokens: int = 0) -> int:
    """Floating point operations of one pass over so many image and text tokens.

    Each layer has four attention projections and a feed-forward of four widths for each token, and the attention over all tokens.
    The embeddings, the last projection and AdaLN are about a percent and left out.
    """
    width = config.num_attention_heads * config.attention_head_dim
    return config.num_layers * (2 * 12 * width**2 * tokens + 4 * width * tokens * (tokens + cached_tokens))
