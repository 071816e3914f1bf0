"""The shipped workflow whose graph is a blueprint."""

from graph_layout import PREVIEW, Graph
from make_blueprints import text_to_image
from make_workflows import ABOUT_COLUMN, BLUE, PLAN, RESULT, about
from workflow_notes import MODEL


def one_node(graph: Graph) -> None:
    """Text to image in one node, which opens to the graph inside."""
    blueprint = text_to_image()
    graph.first = len(blueprint.nodes) + 1
    column = graph.column(*ABOUT_COLUMN)
    about(graph, column)
    graph.note(column, "Model files", MODEL)
    whole = graph.place(graph.column(*PLAN), blueprint.host(), blueprint.definition(), preview=PREVIEW)
    inputs = {"images": (whole, 0), "filename_prefix": f"glm-image/{graph.name}"}
    saved = graph.column(*RESULT).add("SaveImage", taller=140, **inputs)
    graph.group("Text to image", BLUE, whole, saved)


BLUEPRINTS = {"one_node": one_node}
