"""The AR model, its two halves, and the vision tokens it makes of a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..component import Component
from ..diffusion import Grid
from ..weights.formats import FORMATS
from ..weights.linear import quantization_of
from .experience import Experience
from .geometry import PRIOR_PX, reference_grid
from .lookahead import AssumedCosts, PassCosts
from .trained_on import RELEASED, TrainedOn

if TYPE_CHECKING:
    from transformers import GlmImageForConditionalGeneration


class ArHalf(torch.nn.ModuleDict):
    """The modules of an AR model that one stage runs, shared with it and named as in it."""

    holds: tuple[str, ...]

    def __init__(self, model: "GlmImageForConditionalGeneration"):
        super().__init__()
        for name in self.holds:
            place = self
            *parents, last = name.split(".")
            for parent in parents:
                if parent not in place:
                    place[parent] = torch.nn.ModuleDict()
                place = place[parent]
            place[last] = model.get_submodule(name)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class ArLanguage(ArHalf):
    """What Generate Prior runs."""

    holds = ("model.language_model", "lm_head")


class ArVision(ArHalf):
    """What makes vision tokens of a reference."""

    holds = ("model.visual", "model.vqmodel")


HALVES = {"language": ArLanguage, "vision": ArVision}


@dataclass(frozen=True, eq=False)
class ArModel(Component):
    """The AR model with what turns prompts and pictures into its input.

    halves are those of the model, which are placed one without the other. image_processor is transformers' PIL one.
    shortest_edge and longest_edge, in pixels, are its limits for references. codebook identifies the codebook that prior and
    vision tokens index, "" where a file may hold it in fewer bits; palette gives each of its rows a colour, [N, 3] uint8.
    trained_on: the sizes and words that it knows.
    experience: what its plans have shown so far. measured: what a pass of the decoder costs, by where and how the model computes.
    cannot_record: the devices on which recording a pass has failed.
    """

    model: "GlmImageForConditionalGeneration"
    halves: Mapping[str, ArHalf]
    tokenizer: Any
    image_processor: Any
    shortest_edge: int
    longest_edge: int
    codebook: str
    palette: torch.Tensor
    trained_on: TrainedOn = RELEASED
    experience: Experience = field(default_factory=Experience)
    measured: dict[tuple, PassCosts] = field(default_factory=dict)
    cannot_record: set[torch.device] = field(default_factory=set)

    @property
    def parts(self) -> Mapping[str, torch.nn.Module]:
        return self.halves

    @property
    def is_exact(self) -> bool:
        """Whether a token's logits are the same but for float32's rounding, whatever is computed beside it."""
        rounds_more = self.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"  # TF32
        in_full = self.dtype == torch.float32 and not rounds_more
        return in_full and not self.quantized_by and quantization_of(self.model) != "int8"

    def pass_costs(self, batch: int) -> PassCosts | AssumedCosts:
        """What passes for so many sequences cost where the model is now."""
        if not self.is_exact:
            form = FORMATS.get(quantization_of(self.model))
            return AssumedCosts(self.device, streamed=self.streamed, batch=batch, widening=1.0 if form is None else form.widening)
        return self.measured.setdefault((str(self.device), self.weights_are_static, batch), PassCosts())

    @property
    def codebook_size(self) -> int:
        return self.model.config.vq_config.num_embeddings


def halves_of(model: "GlmImageForConditionalGeneration") -> dict[str, ArHalf]:
    """The halves of an AR model, by name. To be made once for a model: a half is known by its identity."""
    return {name: half(model) for name, half in HALVES.items()}


def fit(ar: ArModel, picture: Image.Image) -> Image.Image:
    """Resize a picture of any size to the one that the AR model's vision grid implies, both sides multiples of 32 px."""
    grid = reference_grid(*picture.size, ar.shortest_edge, ar.longest_edge)
    size = (grid.width * PRIOR_PX, grid.height * PRIOR_PX)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


@torch.inference_mode()
def vision_tokens(ar: ArModel, fitted: Image.Image) -> torch.Tensor:
    """The AR model's tokens of a fitted picture: [height / 32, width / 32] int64 on the CPU.

    The picture is halved with the processor's own filter, since the AR model sees 16 x 16 pixels a token.
    """
    grid = Grid(fitted.height // PRIOR_PX, fitted.width // PRIOR_PX)
    halved = fitted.resize((fitted.width // 2, fitted.height // 2), ar.image_processor.resample)
    patches = ar.image_processor(images=halved, do_resize=False, return_tensors="pt").pixel_values  # [tokens, 3*16*16]
    core = ar.model.model
    features = core.visual(
        patches.to(ar.device, ar.dtype),
        grid_thw=torch.tensor([[1, *grid]], device=ar.device),
    ).last_hidden_state  # [tokens, C]
    features = features.T.reshape(1, -1, *grid)  # [1, C, H, W]
    return core.vqmodel.encode(features).image_tokens.reshape(grid).cpu()
