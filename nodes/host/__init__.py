"""Where the nodes run: inside ComfyUI or on their own. The only code that knows the difference."""

import sys

from .protocol import Host


def _find_host() -> Host:
    if "comfy.model_management" in sys.modules:  # ComfyUI imports it long before any pack
        from .comfyui.services import ComfyHost

        return ComfyHost()
    from .standalone import StandaloneHost

    return StandaloneHost()


host = _find_host()
