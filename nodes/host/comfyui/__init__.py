"""The only code that imports ComfyUI, in reading order.

background  stages that run beside other nodes, on a device that those do not use
progress    the progress bar, and texts on the node that runs
patchers    components as ComfyUI's memory manager holds them
models      what the MODEL of every family has: a component behind ComfyUI's samplers
samplers    a run of ComfyUI's samplers, and what we change in them
vae         the VAE of every family as what travels on a VAE wire
glm_image   GLM-Image: the DiT as a MODEL, and its sampler
attention_patches  stock nodes' patches of the DiT's attention
cogview3    CogView3-Plus and CogView3-Base as a MODEL, and their samplers
families    which component is which MODEL, and which function answers which request
templates   pictures, order and old links of the shipped workflows
services    folders, device, placement: what the nodes ask of their host
"""
