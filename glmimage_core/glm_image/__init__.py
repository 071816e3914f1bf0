"""GLM-Image, the method. Read it in this order and you can rebuild the model.

geometry         pixels <-> prior grid, preview grid, DiT tokens; fitting a reference
glyphs           the text to be drawn, encoded by ByT5
ar_model         the AR model, its two halves, vision tokens
layout           the AR model's prompt, and the position of every token
draw             how a token is drawn from the logits
rope             the rotary position embedding
split_decode     the attention of one token by comfy-kitchen
decoder          the AR model over a static key/value cache, a window of tokens a pass
recording        a pass with its draws, on CUDA as a recorded graph
experience       what the plans of a model have shown
drafts           guesses of the tokens that follow
lookahead        how many of them a pass computes
prior            prior tokens: pass after pass
token_preview    the token grid as a picture
sketch           previews alone, and plans that begin with them
regrow           a part of a plan drawn anew, the rest forced
inpaint          a picture's own plan kept outside a mask; room around a picture
edited           what an edit changed
trained_on       which sizes and words a checkpoint knows
references       reference images: one fitted picture, seen by both models
schedule         timesteps, shifted sigmas and the map between them
kv_cache         keys and values that one pass of the DiT writes and others read
dit_block        a block of the DiT in fewer operations
transformer      the DiT's forward
tiles            where the tiles of a large picture lie, and their blend
dit              the DiT as a component, what it is conditioned on, one velocity
reference_cache  which references' keys and values are kept
step_cache       an approximation: skips most of a step where little has changed
denoise          guidance and the Euler loop
pipeline         GlmImage: load, plan, paint, edit
memory           bytes that each stage needs
settings         how to load the models on a card
remote           the same model behind SGLang or vLLM-Omni
plans/           plans by themselves: kept, looked at, taken from pictures
files/           its files on disk
"""
