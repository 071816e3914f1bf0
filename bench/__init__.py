"""`python . bench`: the pack against transformers' and diffusers' own code, and against the limits of the machine.

    ar           the AR stage, a token at a time
    dit          the DiT, a guided step at a time
    vae          the VAE, whole and in tiles
    e2e          the shipped workflows from prompt to picture
    memory       predicted against measured peaks of each stage
    regrow       a part of a plan drawn anew
    checks       whether a device computes what it should
    card         all of these on one GPU, a process each, in one file
    counts       what a GPU would be asked for, computed without one
    libraries    transformers' generate and diffusers' pipeline over the same models
    stages       one stage as it would be placed on a device
    inputs       random inputs, to measure a later stage alone
    measure      rounds, stopwatch, peaks, and the machine's rates
    models       GLM-Image with random weights of a size, made on the device
    counting     operations on the meta device as kernels, bytes and waits of a GPU, and the rules
    counter      the dispatch mode that counts
    cuda_kernels  what CUDA does otherwise than the meta device
    followed     integers on the meta device whose values are known
    environment  libraries, device and settings, printed with every table
    table        tables, printed and saved

Implementations that are compared take turns in one process and on the same weights, so that a noisy machine disturbs all of them
alike. Each measured figure is a median.
"""
