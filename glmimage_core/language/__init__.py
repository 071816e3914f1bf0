"""Language models that rewrite prompts and describe pictures.

vlm        a vision-language model on this machine
chat       a chat model behind an OpenAI-compatible endpoint
answers    the caption in what a model answers
rewriting  what a model is asked, and what a prompt becomes by its answer
memory     bytes that a vision-language model needs
"""
