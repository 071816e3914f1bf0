"""GLM-Image as a library: read it in this order and you can rebuild the model.

    component    one model of a checkpoint, and where and in what precision it computes
    geometry     pixels <-> prior grid <-> latents; the preview grid; fitting a reference
    pixels       picture tensors <-> PIL, checked once
    glyphs       the text to be drawn: found in a prompt, encoded by ByT5
    references   reference images: fitted picture, vision tokens, VAE latents
    prior        prior tokens: layout, decode, sample
    decoder      the AR model at one token a step, over a static key/value cache
    schedule     timesteps, shifted sigmas and the map between them
    transformer  diffusers' DiT, cut where a run repeats itself
    denoise      the DiT: reference key/value caches, guided velocity, the Euler loop
    step_cache   an approximation: skips most of a step where little has changed
    vae          pixels <-> latents, tiling
    preview      small pictures of work in progress: the token grid, latents without the VAE
    lora         LoRA files: read, matched to layers, laid over the weights and taken off
    rewriting    what a language model is told to make of a prompt, and what becomes of its answer
    chat         a language model behind an OpenAI-compatible endpoint
    folders      a checkpoint folder: its layout, and finding one
    description  what a checkpoint holds and what is wrong with it, from configs and file headers
    checkpoint   load one component of a checkpoint folder
    recognise    which component a safetensors file's header is of, and the config that its shapes say
    single_file  one component in one safetensors file: find it, check it, load it
    quantization weights in fewer bits: layers, formats, a linear layer that computes with them
    nf4          its 4-bit format
    foreign      checkpoints that other libraries quantized
    quantized_checkpoint   writes a checkpoint anew with weights in fewer bits
    residency    which model is on the device, and who must leave
    streaming    a model that does not fit: brought to the device block by block
    memory       how many bytes each stage needs, predicted from the configs
    sizes        the numbers of the random checkpoints, and of the released one
    tiny         writes a random checkpoint in the released layout

It knows nothing of ComfyUI, prints nothing, downloads nothing and moves no model on its own: progress, interruption and
placement come in as arguments. Only `chat` speaks to the network, to the one address it is given. Models are the classes of
transformers and diffusers, imported when first used.
"""
