"""Where the nodes run: inside ComfyUI or on their own. The only code that knows the difference.

requests     what a sampler node asks of its host, one type a sampler
protocol     what a node needs from its surroundings
devices      names of devices in a loader's widget
standalone/  without ComfyUI
comfyui/     inside ComfyUI; the only code that imports it
"""

import sys

from .protocol import Host


def _find_host() -> Host:
    if "comfy.model_management" in sys.modules:  # ComfyUI imports it long before any pack
        from .comfyui import families, templates
        from .comfyui.services import ComfyHost

        templates.put_pictures()
        templates.serve()
        return ComfyHost(families.MODELS, families.SAMPLERS)
    from .standalone import StandaloneHost, families

    return StandaloneHost(families.SAMPLERS)


host = _find_host()
