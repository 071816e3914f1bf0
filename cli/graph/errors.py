"""What is wrong with a workflow, and what a node raised."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...glmimage_core.libraries import first_cause, import_failure

WRITTEN_FOR_PEOPLE = (ValueError, OSError, ImportError, RuntimeError)  # whose messages mostly make sense without the class


class WorkflowError(ValueError):
    """What is wrong with a workflow or with a value in it, in one line that names node and input."""


class NodeError(RuntimeError):
    """What a node raised while it ran or was checked, with the node's name."""

    def __init__(self, node: str, error: Exception):
        super().__init__(f"{node}: {explained(error)}")
        self.error = error


@contextmanager
def node_boundary(place: str) -> Iterator[None]:
    """Around code of a node: whatever it raises becomes a NodeError that begins with place. A WorkflowError passes.

    The only place that catches every exception: nodes and the libraries they call may raise any.
    """
    try:
        yield
    except (WorkflowError, NodeError):
        raise
    except Exception as error:
        raise NodeError(place, error) from error


def explained(error: Exception) -> str:
    """An exception in words: without its class where its author wrote a message for people, with its first cause where a library
    could not be imported."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, UnicodeEncodeError):
        return f"a text holds {error.object[error.start]!r}, half a character, which is no text; type it anew"
    root = first_cause(error)
    if isinstance(error, ModuleNotFoundError) or "torchvision::" in str(root):
        return import_failure(error)
    message = str(error)
    if not message or not isinstance(error, WRITTEN_FOR_PEOPLE) or isinstance(error, RecursionError):
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if root is not error and isinstance(error, ImportError):
        message += f"; the cause is {type(root).__name__}: {root}"
    return message
