"""Makes nano part by part: `python . train`. A folder holds each part's state and, below `nano`, the checkpoint as far as it is.

vae       on drawn scenes
vision    the AR model's vision half with the codebook
ar        the AR model's language half, on the tokens of scenes
dit       DiT and glyph encoder, on the VAE's latents of scenes
glyphs    the glyph encoder and a head of the DiT, to find the letters
letters   the DiT again, now reading the letters
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import Module, ModuleDict

from ..glmimage_core.glm_image.dit import Dit
from ..glmimage_core.glm_image.files.components import COMPONENTS
from ..glmimage_core.glm_image.files.inspect import scheduler_shift
from ..glmimage_core.glm_image.files.load import ar_model, glyph_encoder, load_vae
from . import ar, dit, letters, vae, vision
from .layout import write_nano_layout
from .loop import Loss, Plan, averaged, train

STORED = torch.bfloat16


class Part(NamedTuple):
    """What is trained, and what writes it, trained, into the checkpoint folder, if anything does. layers: what repeats in it."""

    modules: Module
    loss_of: Loss
    plan: Plan
    write: Callable[[], None] | None
    layers: Iterable[Module] = ()


def train_part(
    name: str,
    folder: Path,
    device: torch.device,
    seconds: float = math.inf,
    compiled: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Train a part, going on from where it was, for so long at most, and write it. Returns whether it is done.

    compiled: the layers of AR model and DiT go through torch.compile first.
    """
    nano = folder / "nano"
    if not nano.exists():
        write_nano_layout(nano)
    with seeded(0):
        part = PARTS[name](nano, device)
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # each layer and kind of lesson is a variant of its own
        for layer in part.layers:
            layer.compile(dynamic=True)
    done = train(name, part.modules, part.loss_of, part.plan, folder, part.layers, seconds, say)
    if part.write is not None:
        part.write()
    return done


def _vae(nano: Path, device: torch.device) -> Part:
    model = _built(nano, "vae").to(device)
    vae.prepare(model)

    def write() -> None:
        mean, std = vae.latent_statistics(model)
        model.register_to_config(latents_mean=mean, latents_std=std)
        model.to(STORED).save_pretrained(nano / "vae")

    return Part(model, lambda rng, generator: vae.loss_of(model, rng, generator), vae.PLAN, write)


def _vision(nano: Path, device: torch.device) -> Part:
    model = _built(nano, "vision_language_encoder").to(device)
    vision.prepare(model)
    modules = _halves(model)["vision"]
    return Part(modules, lambda rng, generator: vision.loss_of(model, rng, generator), vision.PLAN, lambda: _write_ar(nano))


def _ar(nano: Path, device: torch.device) -> Part:
    model = _built(nano, "vision_language_encoder").to(device)
    ar.prepare(model)
    model.set_attn_implementation("eager")  # the fastest on a CPU at these lengths
    planner = ar_model(model, nano)
    modules, layers = _halves(model)["ar"], model.model.language_model.layers
    return Part(modules, lambda rng, generator: ar.loss_of(planner, rng, generator), ar.PLAN, lambda: _write_ar(nano), layers)


def _halves(model: Module) -> dict[str, ModuleDict]:
    """What the parts vision and ar train of the AR model."""
    core = model.model
    return {
        "vision": ModuleDict({"visual": core.visual, "vqmodel": core.vqmodel}),
        "ar": ModuleDict({"language_model": core.language_model, "lm_head": model.lm_head}),
    }


def _write_ar(nano: Path) -> None:
    """The AR model, of which one half may not be trained yet."""
    model = _built(nano, "vision_language_encoder")
    for name, half in _halves(model).items():
        if trained := averaged(name, nano.parent):
            half.load_state_dict(trained)
    model.to(STORED).save_pretrained(nano / "vision_language_encoder")


class _Painting:
    """DiT, glyph encoder and VAE: what the parts dit, glyphs and letters train, with the weights of those before.

    dit_settings: in which the DiT differs from nano's.
    """

    def __init__(self, nano: Path, device: torch.device, **dit_settings):
        self.nano = nano
        self.vae = load_vae(nano, "float32")
        self.vae.model.requires_grad_(False).to(device)
        self.dit = Dit(_built(nano, "transformer", **dit_settings).to(device), self.vae.space, scheduler_shift(nano))
        self.encoder = glyph_encoder(_built(nano, "text_encoder").to(device), nano)
        self.modules = ModuleDict({"dit": self.dit.model, "glyph": self.encoder.model})
        dit.prepare(self.dit, self.encoder, self.vae)

    def go_on_from(self, part: str, but_for: str | tuple[str, ...] = ()) -> None:
        """Take the weights of a part trained before, but for those whose names begin so."""
        trained = averaged(part, self.nano.parent)
        if trained is None:
            raise FileNotFoundError(f"{self.nano.parent / f'{part}.pt'} is missing; train {part} first")
        own = self.modules.state_dict()
        self.modules.load_state_dict(
            {name: weight for name, weight in trained.items() if name in own and not name.startswith(but_for)}, strict=False
        )

    def loss(self, of: Callable) -> Loss:
        return lambda rng, generator: of(self.dit, self.encoder, self.vae, rng, generator)

    def write(self) -> None:
        from diffusers import GlmImageTransformer2DModel

        plain = GlmImageTransformer2DModel.from_config(self.dit.model.config)  # which is what a config is to name
        plain.load_state_dict(self.dit.model.state_dict())
        plain.to(STORED).save_pretrained(self.nano / "transformer")
        self.encoder.model.to(STORED).save_pretrained(self.nano / "text_encoder")


def _dit(nano: Path, device: torch.device) -> Part:
    painting = _Painting(nano, device)
    return Part(painting.modules, painting.loss(dit.loss_of), dit.PLAN, painting.write, painting.dit.model.transformer_blocks)


def _glyphs(nano: Path, device: torch.device) -> Part:
    painting = _Painting(nano, device, num_layers=1)  # all that letters are found in
    painting.go_on_from("dit", but_for=("glyph.", "dit.glyph_projector."))
    letters.freeze_all_but_the_finder(painting.dit)
    reader = letters.reader(painting.dit).to(device)
    painting.modules["reader"] = reader
    return Part(painting.modules, painting.loss(partial(letters.loss_of_glyphs, reader)), letters.GLYPHS_PLAN, None)


def _letters(nano: Path, device: torch.device) -> Part:
    painting = _Painting(nano, device)
    painting.go_on_from("dit")
    painting.go_on_from("glyphs")
    letters.freeze_the_finder(painting.dit, painting.encoder)
    return Part(
        painting.modules, painting.loss(letters.loss_of), letters.PLAN, painting.write, painting.dit.model.transformer_blocks
    )


def _built(nano: Path, name: str, **settings) -> Module:
    """A component with the library's own first weights, and without dropout. settings: in which a diffusers config differs."""
    from transformers import GenerationConfig

    kind, folder = COMPONENTS[name].model_class, nano / name
    if hasattr(kind, "load_config"):  # diffusers
        return kind.from_config(kind.load_config(folder), **settings).eval()
    model = kind(kind.config_class.from_pretrained(folder)).eval()
    if (folder / "generation_config.json").is_file():  # what the reference samples by
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """First weights come from PyTorch's own generator, which is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


PARTS: dict[str, Callable[[Path, torch.device], Part]] = {
    "vae": _vae, "vision": _vision, "ar": _ar, "dit": _dit, "glyphs": _glyphs, "letters": _letters
}  # fmt: skip
"""In the order in which they are to be made: dit needs the VAE, glyphs needs dit, letters needs glyphs."""
