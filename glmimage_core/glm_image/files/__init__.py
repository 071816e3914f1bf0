"""GLM-Image's files on disk.

components   one table: what a component is, and finding a checkpoint
processor    the processor of the AR model, the tokenizer of the glyph encoder, and their check
inspect      what a checkpoint holds and what is wrong with it
identify     which component a safetensors header is, and the config that its shapes say
load         a component from a checkpoint folder
single_file  a component from one safetensors file
quantize     write a quantized copy of a checkpoint
"""
