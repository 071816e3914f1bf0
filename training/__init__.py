"""How nano, the built-in model, was made, and how well a checkpoint draws nano's world.

world      scenes of coloured shapes and words on a grid of cells, and the token that each cell is
drawing    a scene as a picture
captions   a scene, or a change of it, in English and Chinese
reading    a picture back as a scene
scoring    the held-out prompts, and what a picture must show; painter paints them
make       the parts of nano, each trained by loop, written into a layout; structure has first values
           (vae, vision, ar, dit, letters)
"""
