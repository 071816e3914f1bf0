"""Plans on disk: saved alone or in the pictures that were painted from them, and loaded again."""

import hashlib
import io
import json
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from ..glmimage_core.checkpoints.names import inside
from ..glmimage_core.checkpoints.numbered import expanded, stem_of, write_numbered
from ..glmimage_core.checkpoints.outputs import check_writable
from ..glmimage_core.glm_image.plans.choose import chosen
from ..glmimage_core.glm_image.plans.kept import SUFFIXES, TEXT_KEY, load_prior, prior_text, save_prior
from ..glmimage_core.images import to_pictures
from ..workflows import shipped_picture
from .host import host
from .sockets import CATEGORY, PRIOR, validation_message

FOLDER = "prior"  # below input and output
NOTHING = "none"  # the choice where there is no file: the front end shows an empty list as undefined
IN_OUTPUT = " [output]"  # as ComfyUI marks a file that is not in its input folder


class GLMImageSavePrior:
    TITLE = "GLM-Image Save Prior"
    DESCRIPTION = (
        "Keeps a plan: in a file of a few kB, or with images connected in their PNG files, which look and load like any other "
        "picture. Load Prior reads both, and the sampler paints the same picture from it."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("save plan", "save tokens", "save composition", "save image with prior", "keep composition", "export prior")
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ()
    RETURN_NAMES = ()
    OUTPUT_TOOLTIPS = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prior": (PRIOR, {"tooltip": "The plan to keep, with the prompt, seed and settings that it was made with."}),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": f"{FOLDER}/GLM-Image",
                        "tooltip": "What the names of the files begin with, below the output folder. Load Prior lists what is in "
                        f"its folder {FOLDER}. %width%, %height%, %year% and the like are filled in.",
                    },
                ),
            },
            "optional": {
                "images": (
                    "IMAGE",
                    {
                        "tooltip": "The pictures that were painted from the plan. Each is saved as a PNG that carries its plan "
                        "and the workflow, in place of a file with the plan alone."
                    },
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix):
        return validation_message(lambda: filename_prefix is None or _stem(filename_prefix))

    def save(self, prior, filename_prefix, images=None, prompt=None, extra_pnginfo=None):
        stem = _stem(expanded(filename_prefix, prior.width, prior.height))
        if images is None:
            files = [write_numbered(stem, ".safetensors", lambda path: save_prior(prior, path))]
        else:
            if prior.batch not in (1, len(images)):
                raise ValueError(
                    f"the prior plans {prior.batch} pictures and {len(images)} are connected; connect the pictures that were "
                    "painted from it"
                )
            graph = {"prompt": prompt, **(extra_pnginfo or {})} if host.saves_workflows else {}
            texts = {name: json.dumps(value) for name, value in graph.items() if value is not None}
            files = []
            for number, picture in enumerate(to_pictures(images)):
                png = _png(picture, texts | {TEXT_KEY: prior_text(chosen(prior, [min(number, prior.batch - 1)]))})
                files.append(write_numbered(stem, ".png", lambda path, png=png: path.write_bytes(png)))
        return host.saved(files)


def _stem(prefix: str) -> Path:
    """What the names of a prefix's files begin with. Raises ValueError or OSError where no such file can be written."""
    stem = stem_of(host.output_folder(), prefix)
    check_writable(stem.with_name(f"{stem.name}_00001_.safetensors"))
    return stem


def _png(picture, texts: dict[str, str]) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    picture.save(file, format="PNG", pnginfo=info, compress_level=4)
    return file.getvalue()


class GLMImageLoadPrior:
    TITLE = "GLM-Image Load Prior"
    DESCRIPTION = (
        "Loads a plan that Save Prior kept: from its file, or from a picture that carries it. No AR model is needed to paint it "
        "again. The sampler refuses a plan of another checkpoint."
    )
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ("load plan", "load tokens", "load composition", "plan from png", "import prior", "reuse composition")
    FUNCTION = "load"
    RETURN_TYPES = (PRIOR, "STRING", "INT", "INT", "INT")
    RETURN_NAMES = ("prior", "prompt", "width", "height", "batch_size")
    OUTPUT_TOOLTIPS = (
        "The plan, for Apply Prior.",
        "The prompt that it was made with, for Encode Prompt, which finds the text to be drawn in it.",
        "Width of the planned picture in pixels, for the latent of another sampler.",
        "Height of the planned picture in pixels, for the latent of another sampler.",
        "How many pictures are planned, for the latent of another sampler.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "file": (
                    _names() or [NOTHING],
                    {
                        "tooltip": "A file of Save Prior, or a PNG that carries a plan: those in the output folder's folder "
                        f"{FOLDER}, the newest first, and those in the input folder and its folder {FOLDER}."
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return validation_message(lambda: file is None or load_prior(_find(file)))

    @classmethod
    def IS_CHANGED(cls, file):
        return hashlib.sha256(_find(file).read_bytes()).hexdigest()

    def load(self, file):
        prior = load_prior(_find(file))
        host.say(f"{prior.batch} x {prior.width} x {prior.height}, seed {prior.seed}: {prior.prompt}")
        return (prior, prior.prompt, prior.width, prior.height, prior.batch)


def _names() -> list[str]:
    """The files that may hold a plan: those that were saved, the newest first, then those that were put into the input folder."""
    given, kept = host.input_folder(), host.output_folder()
    saved = sorted(_files(kept / FOLDER, "**/*"), key=lambda file: (file.stat().st_mtime_ns, file), reverse=True)
    own = [*_files(given / FOLDER, "**/*"), *_files(given, "*")]
    return [
        *(f"{file.relative_to(kept).as_posix()}{IN_OUTPUT}" for file in saved),
        *(file.relative_to(given).as_posix() for file in own),
    ]


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that may hold a plan."""
    return [file for file in sorted(folder.glob(pattern)) if file.suffix.lower() in SUFFIXES and file.is_file()]


def _find(name: str) -> Path:
    """The file of a name in the list, or of any other in these folders. Raises FileNotFoundError or ValueError."""
    in_output = name.endswith(IN_OUTPUT)
    folder = host.output_folder() if in_output else host.input_folder()
    path = inside(folder, name.removesuffix(IN_OUTPUT))
    if not path.is_file() and not in_output and (shipped := shipped_picture(name)):
        return shipped
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no plan {name!r} in {folder}; save one with GLM-Image Save Prior, or put a PNG that carries one into "
            f"{host.input_folder()}"
        )
    return path
