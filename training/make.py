"""Makes nano in phases: `python . train`. A folder holds the state of each phase and, below `nano`, the checkpoint so far.

vae       the VAE, on drawn scenes
vision    the vision half of the AR model and its codebook
ar        the language half of the AR model, on the tokens of scenes
dit       DiT and glyph encoder, on the VAE's latents of scenes
glyphs    the glyph encoder and one head of the DiT, which learn to find letters
letters   the DiT again, which now reads the letters
plans     the language half again, from the weights that the checkpoint has, with the sizes that `score` asks for
decoder   the VAE's decoder again, from the weights that the checkpoint has; its encoder and all latents stay
words     the vision half again, from the weights that the checkpoint has, with long words; the codebook stays
keeping   the DiT again, from the weights that the checkpoint has, with edits whose words no glyph text says
larger    the language half again, from the weights that the checkpoint has, with pictures of up to 512 x 512 pixels
allowed   the language half again, from the weights that the checkpoint has, with all that a prompt allows in the place of one
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
from ..glmimage_core.glm_image.files.load import ar_model, glyph_encoder, load_ar, load_dit, load_glyph_encoder, load_vae
from . import allowed, ar, decoder, dit, keeping, larger, letters, plans, vae, vision, words
from .dit import DitModels
from .layout import write_larger_sizes, write_nano_layout
from .loop import Loss, Recipe, averaged, steps_done, train

STORED_DTYPE = torch.bfloat16
_LOAD = {"vision_language_encoder": load_ar, "transformer": load_dit, "text_encoder": load_glyph_encoder, "vae": load_vae}


class Phase(NamedTuple):
    """What is trained, by which loss and recipe.

    write: puts the trained weights into the checkpoint folder; None for a phase that only prepares a later one. layers: the
    repeated layers, which Muon trains and torch.compile compiles.
    """

    modules: Module
    loss_of: Loss
    recipe: Recipe
    write: Callable[[], None] | None
    layers: Iterable[Module] = ()


def train_phase(
    name: str,
    folder: Path,
    device: torch.device,
    *,
    seconds: float = math.inf,
    compiled: bool = False,
    rewrite: bool = False,
    report: Callable[[str], None] = print,
) -> bool:
    """Train a phase from where it stopped, for at most `seconds`, and write its weights. Returns whether it is done.

    A phase that had nothing left to do is not written, since a later one may have gone on with its weights. rewrite: write it all
    the same, because the checkpoint is made anew. compiled: run the layers of AR model and DiT through torch.compile.
    """
    nano = folder / "nano"
    if not nano.exists():
        write_nano_layout(nano)
    already_done = steps_done(name, folder)
    with seeded(0):
        phase = PHASES[name](nano, device)
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # each layer and each kind of batch compiles a variant
        for layer in phase.layers:
            layer.compile(dynamic=True)
    done = train(
        name, phase.modules, phase.loss_of, phase.recipe, folder=folder, layers=phase.layers, seconds=seconds, report=report
    )
    if phase.write is not None and (rewrite or steps_done(name, folder) > already_done):
        phase.write()
    return done


def _vae(nano: Path, device: torch.device) -> Phase:
    model = _initial_model(nano, "vae").to(device)
    vae.init_weights(model)

    def write() -> None:
        mean, std = vae.latent_statistics(model)
        model.register_to_config(latents_mean=mean, latents_std=std)
        _save(model, nano / "vae")

    return Phase(model, partial(vae.loss_of, model), vae.RECIPE, write)


def _decoder(nano: Path, device: torch.device) -> Phase:
    model = _model_so_far(nano, "vae").to(device)
    return Phase(model.decoder, partial(decoder.loss_of, model), decoder.RECIPE, partial(_save, model, nano / "vae"))


def _vision(nano: Path, device: torch.device) -> Phase:
    model = _initial_model(nano, "vision_language_encoder").to(device)
    vision.init_weights(model)
    return Phase(_ar_halves(model)["vision"], partial(vision.loss_of, model), vision.RECIPE, partial(_write_ar, nano))


def _ar(nano: Path, device: torch.device) -> Phase:
    model = _initial_model(nano, "vision_language_encoder").to(device)
    ar.init_weights(model)
    model.set_attn_implementation("eager")  # the fastest on a CPU at these lengths
    loss_of = partial(ar.loss_of, ar_model(model, nano))
    layers = model.model.language_model.layers
    return Phase(_ar_halves(model)["ar"], loss_of, ar.RECIPE, partial(_write_ar, nano), layers=layers)


def _plans(nano: Path, device: torch.device) -> Phase:
    return _planner(nano, device, plans.loss_of, plans.RECIPE, attention="eager")


def _larger(nano: Path, device: torch.device) -> Phase:
    phase = _planner(nano, device, larger.loss_of, larger.RECIPE, attention="sdpa")

    def write() -> None:
        phase.write()
        write_larger_sizes(nano)

    return phase._replace(write=write)


def _allowed(nano: Path, device: torch.device) -> Phase:
    return _planner(nano, device, allowed.loss_of, allowed.RECIPE, attention="sdpa")


def _planner(nano: Path, device: torch.device, loss_of: Callable[..., torch.Tensor], recipe: Recipe, *, attention: str) -> Phase:
    """The language half, from the weights that the checkpoint has."""
    model = _model_so_far(nano, "vision_language_encoder").to(device)
    model.set_attn_implementation(attention)
    write = partial(_save, model, nano / "vision_language_encoder")
    layers = model.model.language_model.layers
    return Phase(_ar_halves(model)["ar"], partial(loss_of, ar_model(model, nano)), recipe, write, layers=layers)


def _words(nano: Path, device: torch.device) -> Phase:
    model = _model_so_far(nano, "vision_language_encoder").to(device)
    core = model.model
    core.vqmodel.quantize.requires_grad_(False)  # a kept plan is known by its codebook
    half = ModuleDict({"visual": core.visual, "quant_conv": core.vqmodel.quant_conv})
    return Phase(half, partial(words.loss_of, model), words.RECIPE, partial(_save, model, nano / "vision_language_encoder"))


def _ar_halves(model: Module) -> dict[str, ModuleDict]:
    """The modules of the AR model's two halves."""
    core = model.model
    return {
        "vision": ModuleDict({"visual": core.visual, "vqmodel": core.vqmodel}),
        "ar": ModuleDict({"language_model": core.language_model, "lm_head": model.lm_head}),
    }


def _write_ar(nano: Path) -> None:
    """Write the AR model. A half that is not trained yet has random weights."""
    model = _initial_model(nano, "vision_language_encoder")
    for name, half in _ar_halves(model).items():
        if trained := averaged(name, nano.parent):
            half.load_state_dict(trained)
    _save(model, nano / "vision_language_encoder")


def _save(model: Module, folder: Path) -> None:
    model.to(STORED_DTYPE).save_pretrained(folder)


class _DitTraining:
    """The models of the phases that train the DiT. The VAE is trained already, the others have their library's initial weights.

    dit_settings: entries of the DiT's config that differ from nano's.
    """

    def __init__(self, nano: Path, device: torch.device, **dit_settings):
        self.nano = nano
        frozen_vae = load_vae(nano, "float32")
        frozen_vae.model.requires_grad_(False).to(device)
        transformer = _initial_model(nano, "transformer", **dit_settings).to(device)
        encoder = glyph_encoder(_initial_model(nano, "text_encoder").to(device), nano)
        self.models = DitModels(Dit(transformer, frozen_vae.space, scheduler_shift(nano)), encoder, frozen_vae)
        self.modules = ModuleDict({"dit": transformer, "glyph": encoder.model})  # these names are in the state files

    def initialise(self) -> None:
        """Take the initial weights of `dit.init_weights`."""
        dit.init_weights(self.models)

    def start_from(self, phase: str, exclude: str | tuple[str, ...] = ()) -> None:
        """Take the weights of an earlier phase, except those whose names start with `exclude`."""
        trained = averaged(phase, self.nano.parent)
        if trained is None:
            raise FileNotFoundError(f"{self.nano.parent / f'{phase}.pt'} is missing; train {phase} first")
        own = self.modules.state_dict()
        self.modules.load_state_dict(
            {name: weight for name, weight in trained.items() if name in own and not name.startswith(exclude)}, strict=False
        )

    def start_from_checkpoint(self) -> None:
        """Take the weights that the checkpoint has."""
        for module, name in (("dit", "transformer"), ("glyph", "text_encoder")):
            self.modules[module].load_state_dict(_weights_so_far(self.nano, name))

    def write(self) -> None:
        from diffusers import GlmImageTransformer2DModel

        transformer = self.models.dit.model
        released = GlmImageTransformer2DModel.from_config(transformer.config)  # its config names the class of the library
        released.load_state_dict(transformer.state_dict())
        _save(released, self.nano / "transformer")
        _save(self.models.glyph_encoder.model, self.nano / "text_encoder")

    def phase(self, loss_of: Callable[..., torch.Tensor], recipe: Recipe) -> Phase:
        layers = self.models.dit.model.transformer_blocks
        return Phase(self.modules, partial(loss_of, self.models), recipe, self.write, layers=layers)


def _dit(nano: Path, device: torch.device) -> Phase:
    training = _DitTraining(nano, device)
    training.initialise()
    return training.phase(dit.loss_of, dit.RECIPE)


def _glyphs(nano: Path, device: torch.device) -> Phase:
    training = _DitTraining(nano, device, num_layers=1)  # the head that finds letters is in the first block
    training.initialise()
    training.start_from("dit", exclude=("glyph.", "dit.glyph_projector."))
    models = training.models
    letters.freeze_all_but_the_finder(models.dit)
    training.modules["reader"] = letters.letter_classifier(models.dit).to(device)
    return Phase(
        training.modules,
        partial(letters.finder_loss, models, training.modules["reader"]),
        letters.FINDER_RECIPE,
        write=None,  # the phase letters starts from its state
    )


def _letters(nano: Path, device: torch.device) -> Phase:
    training = _DitTraining(nano, device)
    training.start_from("dit")
    training.start_from("glyphs")
    letters.init_what_the_finder_reads(training.models.dit)
    letters.freeze_the_finder(training.models)
    return training.phase(letters.loss_of, letters.RECIPE)


def _keeping(nano: Path, device: torch.device) -> Phase:
    training = _DitTraining(nano, device)
    training.start_from_checkpoint()
    letters.freeze_the_finder(training.models)
    return training.phase(keeping.loss_of, keeping.RECIPE)


def _initial_model(nano: Path, name: str, **settings) -> Module:
    """A component with its library's own initial weights, and without dropout. settings: changed entries of its config."""
    from transformers import GenerationConfig

    model_class, folder = COMPONENTS[name].model_class, nano / name
    if hasattr(model_class, "load_config"):  # diffusers
        return model_class.from_config(model_class.load_config(folder), **settings).eval()
    model = model_class(model_class.config_class.from_pretrained(folder)).eval()
    if (folder / "generation_config.json").is_file():  # how the reference implementation samples
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _model_so_far(nano: Path, name: str) -> Module:
    """A component with the weights that the checkpoint has. Saved again, its config stays the same."""
    model = _initial_model(nano, name)
    model.load_state_dict(_weights_so_far(nano, name))
    return model


def _weights_so_far(nano: Path, name: str) -> dict[str, torch.Tensor]:
    return _LOAD[name](nano, "float32").model.state_dict()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's global generator, from which initial weights are drawn, and restore it after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


PHASES: dict[str, Callable[[Path, torch.device], Phase]] = {
    "vae": _vae, "vision": _vision, "ar": _ar, "dit": _dit, "glyphs": _glyphs, "letters": _letters,
    "plans": _plans, "decoder": _decoder, "words": _words, "keeping": _keeping, "larger": _larger,
    "allowed": _allowed,
}  # fmt: skip
"""In an order in which each finds what it needs: dit needs the VAE, glyphs needs dit, letters needs glyphs, plans needs ar,
decoder needs vae, words needs vision, keeping needs letters, larger needs plans and allowed needs larger, or all six a finished
checkpoint."""
