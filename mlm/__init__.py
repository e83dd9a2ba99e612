"""mlm: pretrain a BERT-style encoder on your own text and fine-tune it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Embedder", "FillMask", "__version__"]

if TYPE_CHECKING:
    from mlm.inference import Embedder, FillMask


def __getattr__(name: str) -> Any:
    """Import the inference classes when first asked for, so that ``import mlm`` stays instant."""
    if name in {"FillMask", "Embedder"}:
        from mlm import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'mlm' has no attribute {name!r}")
