"""How weights are held and changed. Knows no model family and no checkpoint folder.

nf4         the 4-bit format, as a layout of comfy-kitchen
formats     int8, fp8, nf4: codes, scales, names in files
linear      a linear layer that computes with quantized weights, and which layers of a model become one
compiled    products with fp8 and nf4 weights in kernels that torch.compile writes
joined      several linear layers as one product
unreadable  why a file of weights cannot be opened
external    weights that another library quantized
lora        LoRA files: read, matched to layers, applied to the weights and removed again
"""
