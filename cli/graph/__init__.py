"""Runs a workflow file without ComfyUI.

workflow    a file in memory: read, changed, brought to API format; needs no torch
unfold      UI format to API format, as ComfyUI's front end does it
promoted    which value of a subgraph's node belongs to which widget inside
ui_format   nodes, slots and links of a file in UI format
widgets     the values of a node's widgets, by name
texts       choices in prompts, names in file names
classes     the classes of one workflow's nodes
declared    what a node class declares of its inputs
nano        a workflow changed so that the built-in model runs it
runner      checks a workflow and runs its nodes in order
stock       ComfyUI's own nodes that the shipped workflows use
nodes       all nodes that a workflow may hold here
errors      what is wrong with a workflow, and what a node raised
"""
