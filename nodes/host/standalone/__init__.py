"""Without ComfyUI: the command line or a test says where models are, which device computes and who sees the progress.

services   folders, progress, placement: what the nodes ask of their host
glm_image  GLM-Image's sampler
cogview3   the samplers of CogView3-Plus and CogView3-Base
families   which function answers which request
"""

from .services import StandaloneHost, best_device, usable_device

__all__ = ["StandaloneHost", "best_device", "usable_device"]
