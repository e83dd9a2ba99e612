"""Downstream tasks: each is one file, and `Task` is the one plug-in point."""

from typing import TYPE_CHECKING, Any

__all__ = ["Classifier", "QuestionAnswerer", "Tagger"]

if TYPE_CHECKING:
    from tasks.inference import Classifier, QuestionAnswerer, Tagger


def __getattr__(name: str) -> Any:
    """Import the inference classes when first asked for, so that ``import tasks`` stays instant."""
    if name in __all__:
        from tasks import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
