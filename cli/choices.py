"""The values that options take, where the library's own tables would import torch. A test holds them equal to the tables."""

DTYPES = ("bfloat16", "float16", "float32")
QUANTIZATIONS = ("none", "int8", "fp8", "nf4")
SIZES = ("tiny", "small", "medium")  # of random GLM-Image checkpoints
CARDS = (8, 12, 16, 24)  # memory of cards in GiB, although they are sold as so many GB
FULL = "full"  # the released size, which only the benchmarks make
COGVIEW3_STAGES = ("base", "relay")
TRAINED_PHASES = ("vae", "vision", "ar", "dit", "glyphs", "letters", "plans", "decoder", "words", "keeping", "larger", "allowed")
DEVICE_HELP = "cuda, mps or cpu; default: the best available"
