"""The nodes, in the order in which a graph uses them. Ids are a file format: add at the end, never rename."""

from .choose import GLMImageChooseByText, GLMImageChoosePriors, GLMImageChooseSurest, GLMImageContactSheet
from .cogview3 import GLMImageCogView3Encode, GLMImageCogView3Sampler, GLMImageLoadCogView3
from .cogview3_base import (
    GLMImageCogView3BaseSampler,
    GLMImageCogView3Relay,
    GLMImageLoadCogView3Base,
    GLMImageLoadT5,
)
from .enlarge import GLMImagePriorFromLatent, GLMImageTiles
from .from_image import GLMImagePriorFromImage
from .inpaint import GLMImageCompositeMasked, GLMImageInpaint, GLMImagePadForOutpaint
from .kept import GLMImageLoadPrior, GLMImageSavePrior
from .language import GLMImageDescribe, GLMImageEnhancePrompt, GLMImageEnhancePromptAPI
from .loaders import GLMImageLoad, GLMImageLoadAR, GLMImageLoadDiT, GLMImageLoadGlyphEncoder, GLMImageLoadVAE, GLMImageLoadVLM
from .look import GLMImageDraft, GLMImagePreviewPrior, GLMImagePriorEntropy
from .lora import GLMImageLoadLoRA
from .mix import GLMImageCropPrior, GLMImageDropPrior, GLMImageMixPriors, GLMImagePastePrior, GLMImageShiftPrior
from .prior import GLMImageApplyPrior, GLMImageGeneratePrior
from .prompt import GLMImageEncodePrompt, GLMImagePrompt
from .references import GLMImageEncodeReference
from .regrow import GLMImageChangedMask, GLMImageRegrowPrior
from .remote import GLMImageRemote
from .sampling import GLMImageModelSampling, GLMImageSampler, GLMImageScheduler
from .size import GLMImageSize
from .sketch import GLMImageExpandPriors, GLMImageSketchPriors, GLMImageVariation
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
        GLMImageLoad,
        GLMImagePrompt,
        GLMImageSavePrior,
        GLMImageLoadPrior,
        GLMImagePriorFromImage,
        GLMImagePreviewPrior,
        GLMImagePriorEntropy,
        GLMImageDraft,
        GLMImageMixPriors,
        GLMImageCropPrior,
        GLMImageShiftPrior,
        GLMImagePastePrior,
        GLMImageDropPrior,
        GLMImageRegrowPrior,
        GLMImageInpaint,
        GLMImagePadForOutpaint,
        GLMImageCompositeMasked,
        GLMImageChangedMask,
        GLMImageSketchPriors,
        GLMImageExpandPriors,
        GLMImageVariation,
        GLMImageContactSheet,
        GLMImageChoosePriors,
        GLMImageChooseSurest,
        GLMImageChooseByText,
        GLMImageTiles,
        GLMImagePriorFromLatent,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {name: node.TITLE for name, node in NODE_CLASS_MAPPINGS.items()}
