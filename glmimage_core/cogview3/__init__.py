"""CogView3, GLM-Image's predecessors: they paint from T5's embeddings of a prompt, without a plan.

text     T5: a prompt as embeddings, and the size that a picture claims to have had
plus     CogView3-Plus: the DiT, DDIM
base     CogView3-Base: two UNets, Euler's steps, the relay
convert  published checkpoints of CogView3-Base into diffusers' layout
memory   bytes that each of them needs
"""
