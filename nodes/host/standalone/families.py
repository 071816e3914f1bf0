"""Which function answers which request. A new family adds its lines here."""

from ..requests import CogView3BaseRequest, CogView3RelayRequest, CogView3Request, GlmImageRequest
from . import cogview3, glm_image

SAMPLERS = {
    GlmImageRequest: glm_image.sample,
    CogView3Request: cogview3.sample_plus,
    CogView3BaseRequest: cogview3.sample_base,
    CogView3RelayRequest: cogview3.relay,
}
