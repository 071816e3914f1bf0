"""How nano, the built-in model, was made, and how well a checkpoint draws nano's world.

world      scenes of coloured shapes and words on a grid of cells, and the token that each cell is
drawing    a scene as a picture
captions   a scene, or a change of it, in English and Chinese
reading    a picture back as a scene
"""
