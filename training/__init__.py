"""How nano, the built-in model, was made, and how well a checkpoint draws nano's world.

world      scenes of coloured shapes and words on a grid of cells; the token of each cell
drawing    a scene as a picture
captions   prompts that ask for a scene, or for a change of one, in English and Chinese
reading    a picture back as a scene
scoring    held-out prompts, and whether a picture shows what its prompt asks for
repainting pictures painted again from their own plans
mixing     held-out plans of which each half is another scene's
sketching  held-out prompts of which several sketches are judged
enlarging  held-out drawings that are enlarged
inpainting held-out inpaintings and outpaintings, and whether they show what was asked and kept the rest
painter    a checkpoint as a function from prompt to picture
make       the phases in which nano is trained, and the checkpoint that they write
loop       the training loop of every phase
layout     the checkpoint folder without its weights
structure  initial values for tables over the codebook
vae        the VAE's loss and initial weights
decoder    how its decoder goes on while its latents stay
vision     those of the AR model's vision half
ar         those of its language half
plans      how it goes on, with the sizes that score asks for
words      how the vision half goes on, with long words
dit        those of DiT and glyph encoder
letters    how glyph encoder and DiT learn to write words
keeping    how the DiT goes on, with words that stay in an edit and that no glyph text says
larger     how the language half goes on, with pictures of up to 512 x 512 pixels
possible   every picture that a prompt allows
allowed    how the language half goes on, with all that a prompt allows in the place of one picture
"""
