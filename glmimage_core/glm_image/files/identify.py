"""Which component of GLM-Image the header of a safetensors file is of, and which config its shapes say.

Tensors go by the names that transformers and diffusers give them, under whatever prefix they are stored.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ...checkpoints.header import FileHeader
from ...checkpoints.report import check_class
from ...json_text import parse_json
from ...weights.formats import FORMATS, Header
from .components import AR, COMPONENTS, DIT, VAE, ComponentKind, space_in

# Of the released models, which the shapes of tensors do not reveal
HEAD_WIDTH = 128  # of AR model and DiT
VISION_HEAD_WIDTH = 96
VAE_BLOCKS = [128, 512, 1024, 1024]

SCHEDULER = "scheduler"
BESIDE_A_DIT = (SCHEDULER, "latents_mean", "latents_std")  # what a file of a DiT may state of schedule and latent space


@dataclass(frozen=True)
class IdentifiedFile:
    """A component of GLM-Image as the header of a file describes it.

    stated_config: the config in its metadata or its CONFIG_TENSOR.

    keys maps the names of tensors in the model to those in the file. headers, and formats of the layers that are quantized,
    go by the names in the model.
    """

    file: Path
    kind: ComponentKind
    keys: dict[str, str]
    headers: dict[str, Header]
    formats: dict[str, str]
    config_from_shapes: dict
    stated_config: dict

    @property
    def config(self) -> dict:
        return _merged(self.kind.assumed_config, self.config_from_shapes, self.stated_config)

    @property
    def model_config(self) -> dict:
        """The part of the config that the class of the model takes."""
        beside = BESIDE_A_DIT if self.kind is DIT else ()
        return {name: value for name, value in self.config.items() if name not in beside}


def identify(file: Path, header: FileHeader) -> IdentifiedFile:
    """The component that a file's header is of. Raises ValueError for another model and for a config that is not its."""
    kind, prefix = kind_and_prefix(file, list(header.tensors))
    keys = {_name_in_model(kind, key.removeprefix(prefix)): key for key in header.tensors if key.startswith(prefix)}
    headers = {name: header.tensors[key] for name, key in keys.items()}
    weights = {name: key for name, key in keys.items() if name.endswith(".weight")}
    layers = {name.removesuffix(".weight"): key.removesuffix(".weight") for name, key in weights.items()}
    formats = {name: header.formats[layer] for name, layer in layers.items() if layer in header.marks}
    shapes = {name: tensor.shape for name, tensor in headers.items()}
    for layer, quantization in formats.items():
        rows, packed = shapes[f"{layer}.weight"]
        shapes[f"{layer}.weight"] = (rows, packed * FORMATS[quantization].packed)
    try:
        config_from_shapes = _CONFIG_FROM_SHAPES[kind](shapes)
    except (KeyError, IndexError, ValueError) as error:  # not there, or of fewer dimensions
        raise ValueError(
            f"{file} does not hold a whole {kind.title}: there is no {error}. It may be one part of several; those belong into a "
            "checkpoint folder, with their index"
        ) from error
    stated_config = header.configs.get(prefix) or _config_from_metadata(header.metadata)
    check_class(stated_config, kind.class_name, file)
    if kind is VAE and config_from_shapes["block_out_channels"] != VAE_BLOCKS and space_in(stated_config, file) is None:
        widths, released = ("/".join(map(str, blocks)) for blocks in (config_from_shapes["block_out_channels"], VAE_BLOCKS))
        raise ValueError(
            f"{file} is another model's VAE: its blocks are {widths} wide and GLM-Image's {released}. One that was made "
            "otherwise needs its config.json, with latents_mean and latents_std, as config in the file's metadata"
        )
    return IdentifiedFile(
        file=file,
        kind=kind,
        keys=keys,
        headers=headers,
        formats=formats,
        config_from_shapes=config_from_shapes,
        stated_config=stated_config,
    )


def _config_from_metadata(metadata: dict[str, str]) -> dict:
    """The config in a file's metadata. Some tools keep other things under that name, so what is no object counts as none."""
    try:
        config = parse_json(metadata.get("config", "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def kind_and_prefix(file: Path, keys: list[str]) -> tuple[ComponentKind, str]:
    """Which component the keys belong to, and the prefix of all its tensors' names. Raises ValueError for another model's."""
    kinds = [kind for kind in COMPONENTS.values() if kind.identifying_tensors]
    for kind in kinds:
        first, *others = kind.identifying_tensors
        for prefix in (key.removesuffix(first) for key in keys if key.endswith(first)):
            if prefix[-1:] in ("", ".") and all(prefix + other in keys for other in others):
                return kind, re.sub(r"(^|\.)model\.$", r"\1", prefix) if kind is AR else prefix
    looked = ", ".join(f"{kind.identifying_tensors[0]} ({kind.title})" for kind in kinds)
    raise ValueError(f"{file} is no part of GLM-Image: it has none of {looked}; its tensors are named like {keys[:1]}")


def _name_in_model(kind: ComponentKind, name: str) -> str:
    """transformers' name of a tensor of the AR model, whose files may leave out the `model.` of all but the head."""
    if kind is not AR or name.startswith(("model.", "lm_head.")):
        return name
    return f"model.{name}"


def _merged(*configs: dict) -> dict:
    """The last one wins, in nested configs too."""
    merged: dict = {}
    for config in configs:
        for key, value in config.items():
            merged[key] = _merged(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def _count(shapes: dict[str, tuple[int, ...]], stem: str) -> int:
    """How many modules of a list there are tensors of."""
    return len({match[1] for name in shapes if (match := re.match(rf"{re.escape(stem)}\.(\d+)\.", name))})


def _heads(width: int, head_width: int) -> int:
    return max(1, width // head_width)  # at least one: a model of narrower heads is refused for its shapes later


def _ar_config(shapes: dict[str, tuple[int, ...]]) -> dict:
    layer, block = "model.language_model.layers.0", "model.visual.blocks.0"
    vocabulary, hidden = shapes["model.language_model.embed_tokens.weight"]
    vision_hidden, channels, patch, _ = shapes["model.visual.patch_embed.proj.weight"]
    positions, _ = shapes["model.visual.embeddings.position_embedding.weight"]
    rows, width = shapes["model.vqmodel.quantize.embedding.weight"]
    return {
        "text_config": {
            "vocab_size": vocabulary,
            "vision_vocab_size": shapes["lm_head.weight"][0],
            "hidden_size": hidden,
            "intermediate_size": shapes[f"{layer}.mlp.down_proj.weight"][1],
            "num_hidden_layers": _count(shapes, "model.language_model.layers"),
            "num_attention_heads": _heads(shapes[f"{layer}.self_attn.q_proj.weight"][0], HEAD_WIDTH),
            "num_key_value_heads": _heads(shapes[f"{layer}.self_attn.k_proj.weight"][0], HEAD_WIDTH),
        },
        "vision_config": {
            "depth": _count(shapes, "model.visual.blocks"),
            "hidden_size": vision_hidden,
            "intermediate_size": shapes[f"{block}.mlp.fc1.weight"][0],
            "num_heads": _heads(vision_hidden, VISION_HEAD_WIDTH),
            "in_channels": channels,
            "patch_size": patch,
            "image_size": round(positions**0.5) * patch,
        },
        "vq_config": {
            "num_embeddings": rows,
            "embed_dim": width,
            "latent_channels": shapes["model.vqmodel.quant_conv.weight"][1],
        },
    }


def _dit_config(shapes: dict[str, tuple[int, ...]]) -> dict:
    rows, width = shapes["prior_token_embedding.weight"]
    patch = DIT.assumed_config["patch_size"]
    return {
        "num_layers": _count(shapes, "transformer_blocks"),
        "num_attention_heads": _heads(width, HEAD_WIDTH),
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": shapes["image_projector.proj.weight"][1] // patch**2,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "text_embed_dim": shapes["glyph_projector.net.0.proj.weight"][1],
        "time_embed_dim": shapes["time_condition_embed.timestep_embedder.linear_1.weight"][0],
        # height and width of the target and of the crop, one embedding each
        "condition_dim": shapes["time_condition_embed.condition_embedder.linear_1.weight"][1] // 4,
        "prior_vq_quantizer_codebook_size": rows,
    }


def _vae_config(shapes: dict[str, tuple[int, ...]]) -> dict:
    blocks = _count(shapes, "encoder.down_blocks")
    return {
        "block_out_channels": [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(blocks)],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets"),
        "mid_block_add_attention": _count(shapes, "encoder.mid_block.attentions") > 0,
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


_CONFIG_FROM_SHAPES = {AR: _ar_config, DIT: _dit_config, VAE: _vae_config}
