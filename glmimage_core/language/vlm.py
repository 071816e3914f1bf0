"""A vision-language model that answers questions about pictures: Glmga, GLM-4.1V, GLM-4.6V and others.

Any model works that transformers' Auto classes open for image-text-to-text: one folder with a config, safetensors, a tokenizer
with a chat template, and an image processor. The model's own processors decide how many tokens a picture takes and which frames
of a clip are used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from ..checkpoints.build import check_libraries, load_pretrained
from ..checkpoints.folders import find_below, find_named, glance_at, read_json
from ..checkpoints.report import ComponentReport, check_quantization, read_headers, resolve_dtype
from ..checkpoints.settings import check_layers
from ..component import Component
from ..progress import Progress, no_progress
from ..weights.linear import quantizable, quantize
from .answers import Answer
from .memory import answer_bytes

if TYPE_CHECKING:
    from transformers import BatchFeature

CPU = torch.device("cpu")
PATCH_VALUES = 3 * 14 * 14  # numbers in a patch, where a processor gives whole pictures instead of patches
THINK_TAG = "<think>"
MIN_QUANTIZED_SHARE = 0.5  # of the language model's weights; below it most of the memory would stay as it is
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
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
    """Frames in order, and their rate in frames per second."""

    frames: Sequence[Image.Image]
    rate: float


class Question(NamedTuple):
    """The input of a model, on the CPU: token ids [1, S], and pictures as patches.

    begins_in_thought: whether the chat template has already opened the model's <think> section.
    """

    inputs: "BatchFeature"
    begins_in_thought: bool = False

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def patches(self) -> int:
        """The number of patches of all pictures and frames. Some processors give patches, others whole pictures."""
        pixel_inputs = (self.inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in self.inputs)
        return sum(len(pixels) if pixels.ndim == 2 else pixels.numel() // PATCH_VALUES for pixels in pixel_inputs)

    def working_bytes(self, vlm: Vlm, max_tokens: int) -> int:
        """How many bytes an answer needs on the device beside the weights."""
        tokens = {"prompt": self.tokens, "answer": max_tokens, "patches": self.patches}
        return answer_bytes(vlm.model.config, vlm.model.dtype.itemsize, **tokens)


def list_vlms(roots: Sequence[Path]) -> dict[str, Path]:
    """Folders below the roots with the config of a vision-language model, by name. Pipelines' own components are left out."""

    def sees(folder: Path, files: list[str]) -> bool:
        return "config.json" in files and "vision_config" in glance_at(folder / "config.json")

    return find_below(roots, sees)


def find_vlm(name: str, roots: Sequence[Path]) -> Path:
    """The folder of that name. Raises FileNotFoundError that says where it looked."""
    return find_named(name, list_vlms(roots), roots, what="vision-language model", layout=LAYOUT)


def check_vlm(folder: Path) -> ComponentReport:
    """What a folder holds; reads no weights. Raises FileNotFoundError, ValueError or ImportError if it cannot be loaded."""
    check_libraries()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ValueError(
            f"{folder / 'config.json'} is of the type {model_type!r}, which this transformers has no model for; update it"
        )
    report = ComponentReport("vlm", MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
    headers, formats = read_headers(folder, report)
    check_layers(config, len(headers), folder / "config.json")
    report.add_tensors(headers, formats)
    for names in (("tokenizer_config.json",), ("preprocessor_config.json", "processor_config.json")):
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"{folder / names[0]} is missing; {LAYOUT}")
    return report


def load_vlm(folder: Path, dtype: str = "auto", quantization: str = "none", *, device: torch.device = CPU) -> Vlm:
    """Load a model with its processor, on the CPU.

    quantization: of the layers of the language model, after they are read. device: where the model will run,
    which quantization and dtype depend on. Raises as `check_vlm`, and ValueError for a quantization that the model or the device
    cannot have.
    """
    from transformers import AutoModelForImageTextToText

    report = check_vlm(folder)
    check_quantization(report, quantization, device)
    stored_quantized = "quantization_config" in glance_at(folder / "config.json")
    if quantization != "none" and stored_quantized:
        raise ValueError(f"{folder.name} is stored quantized; choose quantization none, which keeps it")
    processor = load_processor(folder)
    if not processor.chat_template:
        raise ValueError(f"{folder} has no chat template (chat_template.jinja), without which nothing can be asked; {LAYOUT}")
    library_chooses = dtype == "auto" and stored_quantized  # only the library that quantized the weights knows their dtype
    chosen = "auto" if library_chooses else resolve_dtype(dtype, report, device)
    model = load_pretrained(AutoModelForImageTextToText, folder, dtype=chosen)
    if quantization == "none":
        return Vlm(model, processor)
    if (share := _quantizable_share(model, quantization)) < MIN_QUANTIZED_SHARE:
        raise ValueError(
            f"quantization {quantization} would reach {share:.0%} of the language half's weights in {folder.name}, because the "
            "others are not in Linear layers of a width that it can divide; choose none"
        )
    return Vlm(quantize(model, quantization), processor)


def _quantizable_share(model: torch.nn.Module, quantization: str) -> float:
    """The share of the language model's parameters that is in layers which can be quantized so."""
    reached = sum(layer.weight.numel() for layer in quantizable(model, quantization).values())
    return reached / sum(parameter.numel() for parameter in model.get_decoder().parameters())


def load_processor(folder: Path):
    """The processor of a folder. Without torchvision it takes no clips, since transformers' video processors need torchvision."""
    import transformers
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    configs = (read_json(folder / name) for name in PROCESSOR_CONFIGS if (folder / name).is_file())
    class_name = next((config["processor_class"] for config in configs if "processor_class" in config), None)
    if class_name is None:
        raise ImportError(
            f"{folder} does not say which processor it has; with torchvision that can be found: pip install torchvision"
        )
    processor_class = getattr(transformers, class_name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    components = {
        "image_processor": transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True),
        "tokenizer": tokenizer,
    }
    if "video_processor" in processor_class.get_attributes():
        processor_class, components["video_processor"] = _without_video(processor_class), None
    return processor_class(**components, chat_template=tokenizer.chat_template)


def _without_video(processor_class: type) -> type:
    """A processor class that accepts None as its video processor, which transformers' own check refuses."""

    class WithoutVideo(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    return WithoutVideo


def prepare(
    vlm: Vlm, instruction: str, request: str, pictures: Sequence[Image.Image] = (), *, clip: Clip | None = None
) -> Question:
    """A conversation as the model's input: the instruction as its system message, then pictures, clip and request.

    Thinking is switched off where the chat template allows it. Raises ValueError for a clip of fewer than two frames or without a
    rate, and ImportError where clips need torchvision.
    """
    content: list[dict[str, str]] = [{"type": "image"} for _ in pictures]
    media: dict[str, Any] = {"images": list(pictures)} if pictures else {}
    if clip is not None:
        content.append({"type": "video"})
        media |= _video_inputs(vlm, clip)
    content.append({"type": "text", "text": request})
    system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
    conversation = [*system, {"role": "user", "content": content}]
    text = vlm.processor.apply_chat_template(conversation, add_generation_prompt=True, enable_thinking=False)
    # The template has written the first token already, so the tokenizer must not add another.
    inputs = vlm.processor(text=[text], add_special_tokens=False, return_tensors="pt", **media)
    return Question(inputs, text.rstrip().endswith(THINK_TAG))


def _video_inputs(vlm: Vlm, clip: Clip) -> dict[str, Any]:
    from transformers.video_utils import VideoMetadata

    if len(clip.frames) < 2 or not clip.rate > 0:
        raise ValueError(f"a clip has {len(clip.frames)} frames at {clip.rate} a second; use two or more and a rate above 0")
    if getattr(vlm.processor, "video_processor", None) is None:
        raise ImportError(
            "this model takes no clips here: its processor has none, or needs torchvision (pip install torchvision)"
        )
    frames, (width, height) = list(clip.frames), clip.frames[0].size
    duration = len(frames) / clip.rate
    metadata = VideoMetadata(total_num_frames=len(frames), fps=clip.rate, duration=duration, width=width, height=height)
    sampled = len(vlm.processor.video_processor.sample_frames(metadata)) >= 2
    if not sampled:  # too short for its rate: the first and the last frame, without which the model sees no change
        metadata.frames_indices = [0, len(frames) - 1]
        frames = [frames[0], frames[-1]]
    return {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": sampled}


@torch.inference_mode()
def answer(
    vlm: Vlm,
    question: Question,
    *,
    temperature: float = 0.7,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Progress = no_progress,
) -> Answer:
    """The model's answer as it wrote it, its thoughts included, and whether max_tokens cut it off.

    temperature 0 takes the most probable token; above 0, top-k and top-p are the checkpoint's own. progress(tokens, max_tokens)
    is called before the first token and after each. The global seed of the process is left as it was; the same seed gives the
    same answer on the same device.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class ReportProgress(StoppingCriteria):
        """transformers calls it after each token; it never stops the model itself."""

        def __call__(self, input_ids, scores, **kwargs):
            progress(min(input_ids.shape[1] - question.tokens, max_tokens), max_tokens)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    progress(0, max_tokens)
    inputs = {
        name: tensor.to(vlm.device, vlm.model.dtype if tensor.is_floating_point() else None)
        for name, tensor in question.inputs.items()
    }
    sampling = {"do_sample": True, "temperature": temperature} if temperature else GREEDY
    with _seeded(vlm.device, seed):
        ids = vlm.model.generate(
            **inputs, **sampling, max_new_tokens=max_tokens, stopping_criteria=StoppingCriteriaList([ReportProgress()])
        )
    written = ids[0, question.tokens :].tolist()
    text = vlm.processor.decode(written, skip_special_tokens=True)
    text = f"{THINK_TAG}{text}" if question.begins_in_thought else text
    return Answer(text, cut_off=len(written) >= max_tokens and written[-1] not in _end_tokens(vlm))


def _end_tokens(vlm: Vlm) -> Sequence[int]:
    """The tokens that end an answer: a checkpoint names one, several or none."""
    ids = vlm.model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else ids or []


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generator of a device, from which transformers draws, and restore it after. seed: 0..2^64 - 1."""
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
