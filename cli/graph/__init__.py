"""Runs a workflow file without ComfyUI.

workflow    a file in memory: read, changed, brought to API format; needs no torch
runner      checks a workflow and runs its nodes in order
stock       ComfyUI's own nodes that the shipped workflows use
nodes       all nodes that a workflow may hold here
errors      what is wrong with a workflow, and what a node raised
"""
