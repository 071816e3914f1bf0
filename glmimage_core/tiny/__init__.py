"""Random checkpoints in the released layouts, a few megabytes each, to try workflows and to test with.

spec           widths and depths of the random GLM-Image checkpoints, and of the released one
weights        random weights under which activations keep their size
glm_image      GLM-Image
vlm            Glmga, a vision-language model
cogview3_plus  CogView3-Plus
cogview3_base  CogView3-Base in four checkpoints, as they were published
"""
