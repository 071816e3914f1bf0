"""Random checkpoints in the released layouts, of a few megabytes, to try graphs and to test with.

spec           sizes of the random GLM-Image checkpoints, and of the released one
weights        random weights that keep a signal's size
glm_image      GLM-Image
vlm            Glmga, a vision-language model
cogview3_plus  CogView3-Plus
cogview3_base  CogView3-Base in four checkpoints, as they were published
"""
