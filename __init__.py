"""GLM-Image for ComfyUI. ComfyUI imports this folder and reads the names below."""

# Imported as a package: by ComfyUI, by the command line and by the tests. pytest also looks at this file on its own.
if __package__:
    from .glmimage_core.libraries import check_version

    check_version("torch")  # of ComfyUI's own libraries the one that can be too old

    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./nodes/web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
