"""A vision-language model that answers questions about pictures: Glmga, GLM-4.1V, GLM-4.6V and others.

Whatever transformers' Auto classes open for image-text-to-text works: one folder with a config, safetensors, a tokenizer with a
chat template, and an image processor. How many tokens a picture takes and which frames of a clip are seen, its processors say.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from ..checkpoints.build import check_libraries, load_pretrained
from ..checkpoints.folders import find_below, find_named, read_json
from ..checkpoints.report import ComponentReport, check_quantization, read_headers, resolve_dtype
from ..component import Component
from ..progress import Progress, no_progress
from ..weights.linear import quantizable, quantize
from .memory import answer_bytes
from .rewriting import Answer

if TYPE_CHECKING:
    from transformers import BatchFeature

WHOLE_PATCH = 3 * 14 * 14  # numbers in a patch of a picture that comes whole
THINK_TAG = "<think>"
LEAST_SHARE = 0.5  # of the language half that a quantization must reach
LAYOUT = (
    "a vision-language model is a folder with config.json, safetensors, a tokenizer with a chat template and an image processor"
)


@dataclass(frozen=True, eq=False)
class Vlm(Component):
    """processor: transformers', which turns a conversation with pictures into the model's input."""

    processor: Any

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        return {"vlm": self.model}


class Clip(NamedTuple):
    """Frames in their order and how many of them there are a second."""

    frames: Sequence[Image.Image]
    rate: float


class Question(NamedTuple):
    """What a model is given, on the CPU: ids, and pictures as patches.

    begins_in_thought: whether the conversation ends where the model is to think aloud.
    """

    inputs: "BatchFeature"
    begins_in_thought: bool = False

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def patches(self) -> int:
        """Of all pictures and frames, whether they come as patches or whole."""
        shown = (self.inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in self.inputs)
        return sum(len(pixels) if pixels.ndim == 2 else pixels.numel() // WHOLE_PATCH for pixels in shown)

    def bytes(self, vlm: Vlm, max_tokens: int) -> int:
        """What answering it needs on the device beside the weights."""
        return answer_bytes(vlm.model.config, vlm.model.dtype.itemsize, self.tokens, max_tokens, self.patches)


def list_vlms(roots: Sequence[Path]) -> dict[str, Path]:
    """Folders below the roots with the config of a model that sees, by name. What is inside a pipeline is not looked at."""
    return find_below(roots, lambda folder, files: "config.json" in files and "vision_config" in _config_of(folder))


def find_vlm(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_vlms(roots), roots, what="vision-language model", layout=LAYOUT)


def _config_of(folder: Path) -> dict:
    try:
        return read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}  # which is no config of a model


def check_vlm(folder: Path) -> ComponentReport:
    """What is stored of a sound model. Raises FileNotFoundError, ValueError or ImportError for another; reads no weights."""
    check_libraries()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(f"{folder / 'config.json'} is of the type {kind!r}, which this transformers has no model for; update it")
    report = ComponentReport("vlm", MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])
    report.add_tensors(*read_headers(folder, report))
    for names in (("tokenizer_config.json",), ("preprocessor_config.json", "processor_config.json")):
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"{folder / names[0]} is missing; {LAYOUT}")
    return report


def load_vlm(folder: Path, dtype: str = "auto", quantization: str = "none") -> Vlm:
    """Load a model with its processor, on the CPU. quantization: of the layers of its language half, after they are read."""
    from transformers import AutoModelForImageTextToText

    report = check_vlm(folder)
    check_quantization(report, quantization, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    stored_quantized = "quantization_config" in _config_of(folder)
    if quantization != "none" and stored_quantized:
        raise ValueError(f"{folder.name} is stored quantized; choose quantization none, which keeps it")
    processor = load_processor(folder)
    if not processor.chat_template:
        raise ValueError(f"{folder} has no chat template (chat_template.jinja), without which nothing can be asked; {LAYOUT}")
    as_stored = dtype == "auto" and stored_quantized  # of which its own library knows the dtype
    model = load_pretrained(AutoModelForImageTextToText, folder, dtype="auto" if as_stored else resolve_dtype(dtype, report))
    if quantization == "none":
        return Vlm(model, processor)
    if (share := _quantizable_share(model, quantization)) < LEAST_SHARE:
        raise ValueError(
            f"quantization {quantization} would reach {share:.0%} of the language half's weights in {folder.name}, whose layers "
            "are built otherwise; choose none"
        )
    return Vlm(quantize(model, quantization), processor)


def _quantizable_share(model: torch.nn.Module, quantization: str) -> float:
    """Of the parameters of the language half, how many are in layers that are quantized."""
    reached = sum(layer.weight.numel() for layer in quantizable(model, quantization).values())
    return reached / sum(parameter.numel() for parameter in model.get_decoder().parameters())


def load_processor(folder: Path):
    """The processor of a folder. Without torchvision it takes no clips: transformers' video processors need it."""
    import transformers
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    configs = (read_json(folder / name) for name in _PROCESSOR_CONFIGS if (folder / name).is_file())
    stated = next((config["processor_class"] for config in configs if "processor_class" in config), None)
    if stated is None:
        raise ImportError(
            f"{folder} does not say which processor it has; with torchvision that can be found: pip install torchvision"
        )
    processor_class = getattr(transformers, stated)
    parts = {"image_processor": image_processor, "tokenizer": tokenizer}
    if "video_processor" in processor_class.get_attributes():

        class PicturesOnly(processor_class):
            def check_argument_for_proper_class(self, argument_name, argument):
                return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        processor_class, parts["video_processor"] = PicturesOnly, None
    return processor_class(**parts, chat_template=tokenizer.chat_template)


_PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def prepare(vlm: Vlm, instruction: str, request: str, pictures: Sequence[Image.Image] = (), clip: Clip | None = None) -> Question:
    """What the model is told, shown and asked, in this order; the clip after the pictures.

    Models that can be told not to think aloud are. Raises ValueError for a clip that has less than two frames or no rate, and
    ImportError where clips need torchvision.
    """
    shown = [{"type": "image"} for _ in pictures]
    media: dict[str, Any] = {"images": list(pictures)} if pictures else {}
    if clip is not None:
        shown.append({"type": "video"})
        media |= _video(vlm, clip)
    content = [*shown, {"type": "text", "text": request}]
    told = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
    conversation = [*told, {"role": "user", "content": content}]
    text = vlm.processor.apply_chat_template(conversation, add_generation_prompt=True, enable_thinking=False)
    # A template writes all of a conversation, the first token included.
    inputs = vlm.processor(text=[text], add_special_tokens=False, return_tensors="pt", **media)
    return Question(inputs, text.rstrip().endswith(THINK_TAG))


def _video(vlm: Vlm, clip: Clip) -> dict[str, Any]:
    from transformers.video_utils import VideoMetadata

    if len(clip.frames) < 2 or not clip.rate > 0:
        raise ValueError(f"a clip has two frames or more and some a second, not {len(clip.frames)} and {clip.rate}")
    if getattr(vlm.processor, "video_processor", None) is None:
        raise ImportError(
            "this model takes no clips here: its processor has none, or needs torchvision (pip install torchvision)"
        )
    width, height = clip.frames[0].size
    about = VideoMetadata(
        total_num_frames=len(clip.frames), fps=clip.rate, duration=len(clip.frames) / clip.rate, width=width, height=height
    )
    return {"videos": [list(clip.frames)], "video_metadata": [about], "do_sample_frames": True}


@torch.inference_mode()
def answer(
    vlm: Vlm,
    question: Question,
    temperature: float = 0.7,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Progress = no_progress,
) -> Answer:
    """What the model says, as it says it, thoughts included, and whether max_tokens cut it off.

    temperature 0 takes the likeliest token; above, top-k and top-p are the checkpoint's own. progress(tokens, max_tokens) is
    called before the first token and after each; what it raises stops the model. The process's global seed stays as it was; the
    same seed says the same on the same device.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Watched(StoppingCriteria):
        def __call__(self, input_ids, scores, **rest):
            progress(min(input_ids.shape[1] - question.tokens, max_tokens), max_tokens)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    progress(0, max_tokens)
    inputs = {
        name: tensor.to(vlm.device, vlm.model.dtype if tensor.is_floating_point() else None)
        for name, tensor in question.inputs.items()
    }
    drawn = {"do_sample": True, "temperature": temperature} if temperature else _LIKELIEST
    with _seeded(vlm.device, seed):
        ids = vlm.model.generate(
            **inputs, **drawn, max_new_tokens=max_tokens, stopping_criteria=StoppingCriteriaList([Watched()])
        )
    written = ids[0, question.tokens :].tolist()
    said = vlm.processor.decode(written, skip_special_tokens=True)
    text = f"{THINK_TAG}{said}" if question.begins_in_thought else said
    return Answer(text, cut_off=len(written) >= max_tokens and written[-1] not in _end_tokens(vlm))


def _end_tokens(vlm: Vlm) -> Sequence[int]:
    """The tokens that end an answer: a checkpoint names one, several or none."""
    ids = vlm.model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else ids or []


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """transformers draws from the global generator of a device, which is left as it was. seed: 0..2^64 - 1."""
    generator = _global_generator(device)
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


_LIKELIEST = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
