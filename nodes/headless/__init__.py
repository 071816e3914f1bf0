"""Runs a workflow file without ComfyUI: reads it, checks it, walks it, saves the pictures."""
