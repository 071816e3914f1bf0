"""Where models are and how they compute there. Knows no model family.

residency    which models are on the device, and which one leaves
streams      side streams of CUDA devices
streaming    a model that does not fit, copied to the device block by block
prediction   memory: the run to predict, and the settings of a model that fit a card
compute      the attention backend, torch.compile, comfy-kitchen's operations
"""
