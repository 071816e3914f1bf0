"""CogView3, the predecessors of GLM-Image. They have no AR stage: the diffusion model reads T5's embeddings of the prompt.

text     T5: a prompt as embeddings; the size conditions of SDXL
shared   guidance, the VAE and checks that Plus and Base have in common
plus     CogView3-Plus: the DiT, DDIM
base     CogView3-Base: two UNets, Euler's method, the relay
convert  published checkpoints of CogView3-Base into diffusers' layout
memory   bytes that each of them needs
"""
