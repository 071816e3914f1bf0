"""Widgets that several nodes have. A name, a default, a choice or the order of choices is part of the workflow file format."""

from ..glmimage_core.checkpoints.report import DTYPES
from ..glmimage_core.glm_image.geometry import MAX_SIDE, MIN_SIDE, PRIOR_PX
from ..glmimage_core.weights.formats import CHOICES
from .host.devices import DEVICES

SEED_MAX = 2**64 - 1

# Loaders

DTYPE = (
    ["auto", *DTYPES],
    {
        "default": "auto",
        "tooltip": "Precision of the weights. auto keeps the precision they are stored in, bfloat16 in the released checkpoint. "
        "On a CPU that has no such instructions it is float32, if memory allows.",
    },
)
QUANTIZATION = (
    list(CHOICES),
    {
        "default": "none",
        "tooltip": "Store the attention and feed-forward weights in fewer bits, converted while loading. int8 and fp8 take 60 % "
        "of the memory of bfloat16, nf4 takes 40 %. int8 is the most exact, nf4 the least. none keeps the weights as they are "
        "stored. On CUDA fp8 and nf4 want Triton, which PyTorch brings along on Linux; nf4 can use bitsandbytes instead. Needs "
        "comfy-kitchen.",
    },
)
DEVICE = (
    list(DEVICES),
    {
        "default": "default",
        "tooltip": "Device that computes. If this machine does not have it, the default device is used. With an AR model on "
        "another card, Generate Prior runs in the background of other nodes.",
    },
)
ATTENTION = (
    ["auto", "sdpa", "cudnn", "flash", "sage"],
    {
        "default": "auto",
        "tooltip": "Attention backend. auto: PyTorch's. flash needs the package flash-attn. sage needs sageattention and trades "
        "accuracy for speed.",
    },
)
COMPILE = (
    "BOOLEAN",
    {
        "default": False,
        "tooltip": "Compile the blocks of the DiT with torch.compile. The first step of each new size takes about a minute "
        "longer; the other steps are faster. Needs Triton on a GPU.",
    },
)

# Pictures


def seed_input(of: str) -> tuple:
    """A 64-bit seed. of: what it is the seed of, such as "the noise"."""
    return (
        "INT",
        {
            "default": 0,
            "min": 0,
            "max": SEED_MAX,
            "control_after_generate": True,
            "tooltip": f"Seed of {of}. Image i of a batch uses seed + i, so you can make it again on its own.",
        },
    )


def side_input(
    name: str,
    *,
    default: int = 1024,
    least: int = MIN_SIDE,
    most: int = MAX_SIDE,
    step: int = PRIOR_PX,
    limits: str = "Trained for 1 to 4 megapixels.",
) -> tuple:
    """One side of the picture in pixels; GLM-Image's by default. limits: a sentence about sizes for the tooltip."""
    return (
        "INT",
        {
            "default": default,
            "min": least,
            "max": most,
            "step": step,
            "tooltip": f"{name} of the picture in pixels, a multiple of {step}. {limits}",
        },
    )


def batch_input(most: int, tooltip: str = "How many pictures to paint together.") -> tuple:
    """How many pictures."""
    return ("INT", {"default": 1, "min": 1, "max": most, "tooltip": tooltip})


# Samplers


def steps_input(default: int, *, most: int = 1000, tooltip: str) -> tuple:
    """A number of steps."""
    return ("INT", {"default": default, "min": 1, "max": most, "tooltip": tooltip})


def cfg_input(
    default: float, tooltip: str = "Guidance: how far to steer from the negative to the positive. 1 is off and twice as fast."
) -> tuple:
    """The strength of the guidance."""
    return ("FLOAT", {"default": default, "min": 0.0, "max": 20.0, "step": 0.1, "tooltip": tooltip})


def fraction_input(default: float, tooltip: str) -> tuple:
    """A fraction, 0..1."""
    return ("FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": tooltip})


STEPS = steps_input(50, tooltip="Denoising steps. 30 to 50 are usual.")
DENOISE = fraction_input(1.0, "1 starts from noise. A lower value starts from latent_image, partly noised, and keeps more of it.")
