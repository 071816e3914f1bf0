"""Writes locales/en/nodeDefs.json from the nodes' own texts, for translators to start from.

python scripts/make_locale_en.py
"""

import json

from _pack import ROOT
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS


def node_definitions() -> dict:
    """Titles, descriptions and tooltips in the form of ComfyUI's nodeDefs.json."""
    definitions = {}
    for name, node in NODE_CLASS_MAPPINGS.items():
        entries = {**node.INPUT_TYPES()["required"], **node.INPUT_TYPES().get("optional", {})}
        outputs = zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
        definitions[name] = {
            "display_name": node.TITLE,
            "description": node.DESCRIPTION,
            "inputs": {entry: {"name": entry, "tooltip": options["tooltip"]} for entry, (_, options) in entries.items()},
            "outputs": {str(i): {"name": output, "tooltip": tooltip} for i, (output, tooltip) in enumerate(outputs)},
        }
    return definitions


if __name__ == "__main__":
    (ROOT / "locales" / "en").mkdir(parents=True, exist_ok=True)
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    file.write_text(json.dumps(node_definitions(), indent=2) + "\n", "utf-8")
