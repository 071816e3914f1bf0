"""Importing this loads the pack as `glm_image_pack`, as ComfyUI, the command line and the tests load it."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

runpy.run_path(str(ROOT / "__main__.py"))["load_pack"]("glm_image_pack")
