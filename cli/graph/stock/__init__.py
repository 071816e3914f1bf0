"""ComfyUI's own nodes that workflows around this pack use, with the same ids, inputs and results.

base      what such a node has
reading   pictures on disk as tensors, every frame of an animated one
files     Load Image, Save Image and their kin
scaling   sizes of pictures
images    pictures out of pictures
masks     masks
latents   the VAE's stock nodes, masks and sizes of latents
sampling  empty latents, KSampler and SamplerCustomAdvanced
values    primitives, and text to look at
"""

from .base import Folders, StockNode
from .files import LoadImage, LoadImageMask, MaskPreview, PreviewImage, SaveImage
from .images import (
    EmptyImage,
    ImageBatch,
    ImageBlur,
    ImageCompositeMasked,
    ImageCrop,
    ImageFlip,
    ImageFromBatch,
    ImageInvert,
    ImagePadForOutpaint,
    ImageRotate,
    ImageStitch,
    JoinImageWithAlpha,
    RepeatImageBatch,
    SplitImageWithAlpha,
)
from .latents import LatentUpscale, LatentUpscaleBy, SetLatentNoiseMask, VAEDecode, VAEEncode, VAEEncodeForInpaint
from .masks import (
    CropMask,
    FeatherMask,
    GrowMask,
    ImageColorToMask,
    ImageToMask,
    InvertMask,
    MaskComposite,
    MaskToImage,
    SolidMask,
    ThresholdMask,
)
from .sampling import (
    BasicGuider,
    CFGGuider,
    EmptyLatentImage,
    EmptySD3LatentImage,
    KSampler,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from .scaling import GetImageSize, ImageScale, ImageScaleBy, ImageScaleToMaxDimension, ImageScaleToTotalPixels
from .values import PRIMITIVES, PreviewAny

STOCK_NODES: dict[str, type[StockNode]] = {
    node.__name__: node
    for node in (
        *(LoadImage, LoadImageMask, SaveImage, PreviewImage, MaskPreview, PreviewAny, *PRIMITIVES),
        *(GetImageSize, ImageScale, ImageScaleBy, ImageScaleToMaxDimension, ImageScaleToTotalPixels),
        *(EmptyImage, ImageBatch, RepeatImageBatch, ImageFromBatch, ImageCrop, ImageFlip, ImageRotate, ImageStitch),
        *(ImageInvert, ImageBlur, ImagePadForOutpaint, ImageCompositeMasked, SplitImageWithAlpha, JoinImageWithAlpha),
        *(SolidMask, InvertMask, CropMask, MaskComposite, FeatherMask, GrowMask, ThresholdMask),
        *(MaskToImage, ImageToMask, ImageColorToMask),
        *(SetLatentNoiseMask, LatentUpscale, LatentUpscaleBy, VAEEncode, VAEDecode, VAEEncodeForInpaint),
        *(EmptySD3LatentImage, EmptyLatentImage, KSampler),
        *(RandomNoise, KSamplerSelect, CFGGuider, BasicGuider, SamplerCustomAdvanced),
    )
}

__all__ = ["STOCK_NODES", "Folders"]
