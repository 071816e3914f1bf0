"""What is wrong with a workflow, and what a node raised."""

from ...glmimage_core.libraries import explained


class WorkflowError(ValueError):
    """What is wrong with a workflow or with a value in it, in one line that names node and input."""


class NodeError(RuntimeError):
    """What a node raised while it ran, with the node's name."""

    def __init__(self, node: str, error: Exception):
        message = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        if isinstance(error, ModuleNotFoundError):  # whose words name no package
            message = explained(error)
        super().__init__(f"{node}: {message}")
        self.error = error
