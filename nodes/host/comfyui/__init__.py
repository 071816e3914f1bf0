"""The only code that imports ComfyUI, in files by what they are.

background  stages that run beside other nodes, on a device that those do not use
patchers    components as ComfyUI's memory manager holds them
glm_image   the DiT as a MODEL
cogview3    CogView3-Plus and CogView3-Base as a MODEL
vae         the VAE as what travels on a VAE wire
services    folders, progress, placement, samplers: what the nodes ask of their host
"""
