"""Files on disk, of any model family: plumbing that knows none.

folders   folders of models in diffusers' layout, and finding one below some roots
header    the headers of safetensors and GGUF files: names, shapes, formats
report    what headers and config say of a component, and what is wrong with it
outputs   files and folders that are written whole or not at all
names     file names that every system can write
numbered  files that are named by a prefix and a number
settings  numbers in configs that others wrote
build     a model from its config, or as its library loads it
fill      the weights of safetensors files into a model, quantized on the way or as they are stored
"""
