"""The nodes, in the order in which a graph uses them. Ids are a file format: add at the end, never rename."""

from .loaders import GLMImageLoadAR, GLMImageLoadDiT, GLMImageLoadGlyphEncoder, GLMImageLoadVAE
from .prior import GLMImageApplyPrior, GLMImageGeneratePrior
from .prompt import GLMImageEncodePrompt
from .references import GLMImageEncodeReference
from .sampling import GLMImageSampler
from .vae import GLMImageVAEDecode, GLMImageVAEEncode

NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        GLMImageLoadAR,
        GLMImageLoadGlyphEncoder,
        GLMImageLoadDiT,
        GLMImageLoadVAE,
        GLMImageEncodePrompt,
        GLMImageEncodeReference,
        GLMImageGeneratePrior,
        GLMImageApplyPrior,
        GLMImageSampler,
        GLMImageVAEEncode,
        GLMImageVAEDecode,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "GLMImageLoadAR": "Load GLM-Image AR Model",
    "GLMImageLoadGlyphEncoder": "Load GLM-Image Glyph Encoder",
    "GLMImageLoadDiT": "Load GLM-Image DiT",
    "GLMImageLoadVAE": "Load GLM-Image VAE",
    "GLMImageEncodePrompt": "GLM-Image Encode Prompt",
    "GLMImageEncodeReference": "GLM-Image Encode Reference",
    "GLMImageGeneratePrior": "GLM-Image Generate Prior",
    "GLMImageApplyPrior": "GLM-Image Apply Prior",
    "GLMImageSampler": "GLM-Image Sampler",
    "GLMImageVAEEncode": "GLM-Image VAE Encode",
    "GLMImageVAEDecode": "GLM-Image VAE Decode",
}
