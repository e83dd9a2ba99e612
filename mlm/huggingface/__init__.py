"""How transformers says what we say: one table a family, read in both directions.

Every architecture that has a class of its own in transformers (https://github.com/huggingface/
transformers) is saved in that class's names, so a model folder of ours opens there with no code of
ours, and one of theirs opens here. A family is a file with a table, and its line in native.py.
"""

from mlm.huggingface.config import NativeConfig, read_config, read_labels, write_config
from mlm.huggingface.family import ACTIVATIONS, Family
from mlm.huggingface.native import FAMILIES, HEADS, Native, native_class, nearest_family
from mlm.huggingface.tensors import State, drop_repeated, from_native, native_modules, to_native
from mlm.huggingface.values import checked, layer_kinds, layer_pattern

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "HEADS",
    "Family",
    "Native",
    "NativeConfig",
    "State",
    "checked",
    "drop_repeated",
    "from_native",
    "layer_kinds",
    "layer_pattern",
    "native_class",
    "native_modules",
    "nearest_family",
    "read_config",
    "read_labels",
    "to_native",
    "write_config",
]
