"""Which component is which MODEL, and which function answers which request. A new family adds its lines here."""

from ....glmimage_core.cogview3.base import CogView3Unet
from ....glmimage_core.cogview3.plus import CogView3
from ....glmimage_core.glm_image.dit import Dit
from ..requests import CogView3BaseRequest, CogView3RelayRequest, CogView3Request, GlmImageRequest
from . import cogview3, glm_image

MODELS = {
    Dit: glm_image.dit_patcher,
    CogView3: cogview3.dit_patcher,
    CogView3Unet: cogview3.unet_patcher,
}
SAMPLERS = {
    GlmImageRequest: glm_image.sample,
    CogView3Request: cogview3.sample_plus,
    CogView3BaseRequest: cogview3.sample_base,
    CogView3RelayRequest: cogview3.relay,
}
