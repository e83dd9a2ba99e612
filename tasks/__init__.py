"""Downstream tasks: each is one file, and `Task` is the one plug-in point."""

from typing import TYPE_CHECKING, Any

__all__ = ["Classifier"]

if TYPE_CHECKING:
    from tasks.inference import Classifier


def __getattr__(name: str) -> Any:
    """Import the inference classes when first asked for, so that ``import tasks`` stays instant."""
    if name == "Classifier":
        from tasks import inference

        return inference.Classifier
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
