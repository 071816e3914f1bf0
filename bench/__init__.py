"""`python . bench`: the pack against transformers' and diffusers' own code and against what the machine could do.

    inputs       what the later stages are given when measured alone
    measure      rounds, medians, peaks, and the rates that floors are computed from
    models       random models of a size, made on the device
    reference    transformers' generate and diffusers' pipeline over the same models
    environment  libraries, device and settings, printed with every table
    table        what is printed and saved
    ar, dit, vae, e2e, memory    one module a benchmark

Ways to the same result take turns in one process and on the same weights, so that a noisy machine disturbs all alike; each
figure is a median.
"""
