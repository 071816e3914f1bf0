"""Language models that rewrite prompts and describe pictures.

vlm        a vision-language model on this machine
chat       a chat model behind an OpenAI-compatible endpoint
rewriting  what a model is asked, and what its answer becomes
memory     bytes that a vision-language model needs
"""
