"""The nodes, in the order in which a graph uses them. Ids are a file format: add at the end, never rename."""

from .cogview3 import GLMImageCogView3Encode, GLMImageCogView3Sampler, GLMImageLoadCogView3
from .cogview3_base import (
    GLMImageCogView3BaseSampler,
    GLMImageCogView3Relay,
    GLMImageLoadCogView3Base,
    GLMImageLoadT5,
)
from .language import GLMImageDescribe, GLMImageEnhancePrompt, GLMImageEnhancePromptAPI
from .loaders import GLMImageLoadAR, GLMImageLoadDiT, GLMImageLoadGlyphEncoder, GLMImageLoadVAE, GLMImageLoadVLM
from .lora import GLMImageLoadLoRA
from .prior import GLMImageApplyPrior, GLMImageGeneratePrior
from .prompt import GLMImageEncodePrompt
from .references import GLMImageEncodeReference
from .remote import GLMImageRemote
from .sampling import GLMImageModelSampling, GLMImageSampler, GLMImageScheduler
from .size import GLMImageSize
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
        GLMImageModelSampling,
        GLMImageScheduler,
        GLMImageLoadLoRA,
        GLMImageSize,
        GLMImageEnhancePromptAPI,
        GLMImageLoadVLM,
        GLMImageEnhancePrompt,
        GLMImageDescribe,
        GLMImageLoadCogView3,
        GLMImageCogView3Encode,
        GLMImageCogView3Sampler,
        GLMImageRemote,
        GLMImageLoadT5,
        GLMImageLoadCogView3Base,
        GLMImageCogView3BaseSampler,
        GLMImageCogView3Relay,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {name: node.TITLE for name, node in NODE_CLASS_MAPPINGS.items()}
