"""GLM-Image and its family as a library. Start with `GlmImage`, the door for Python, in glm_image/pipeline.py.

    glm_image       the method, in reading order: read it and you can rebuild the model
    cogview3        CogView3-Plus and CogView3-Base, GLM-Image's predecessors
    language        language models that rewrite prompts and describe pictures
    tiny            random checkpoints in the released layouts

    progress        the callback that every long loop reports to
    units           bytes as people read them
    json_text       JSON that others wrote
    libraries       what is installed: how old it may be, whether it starts
    version         the version of the pack
    images          picture tensors to and from PIL
    masks           which cells a mask touches; old and new pixels put together
    quotation_marks  which characters are quotation marks, which are apostrophes and inches
    quoted          the texts between quotation marks in a prompt
    component       a model with its device, precision and LoRAs
    diffusion       what all painters share: grids of latents, the first noise, the seeds of a batch
    vae             pixels <-> latents, tiling
    latent_preview  latents as colours, without the VAE
    stated          what others' words become before a user reads them
    endpoint        an HTTP client with limits

    checkpoints     files on disk: folders, headers, reports, building a model
    weights         how weights are held and changed: quantization, LoRA
    placement       which model is on the device, streaming, memory, how it computes

Arrows point down: families import the shared modules, and these the plumbing. The library knows nothing of ComfyUI. It prints
nothing, downloads nothing, chooses no device and reads no environment; progress, interruption and placement come in as
arguments. Only `endpoint`, and `language.chat` and `glm_image.remote` through it, speak to the network, each to the one address
that it is given. Models are the classes of transformers and diffusers, imported when first used.
"""


def __getattr__(name: str):
    """`GlmImage`, imported when it is asked for: the plumbing is of use without PyTorch."""
    if name != "GlmImage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .glm_image.pipeline import GlmImage

    return GlmImage
