"""Values of a config.json: of the right kind, and layer patterns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from mlm.errors import UserError
from mlm.model.config import LARGEST, EncoderConfig

_DEFAULTS = {f.name: f.default for f in fields(EncoderConfig)}
_FROM_ZERO = ("type_vocab_size", "position_offset")


def checked(setting: str, value: Any, key: str | None = None) -> Any:
    """``value``, if it is of the kind that ``setting`` of `EncoderConfig` holds.

    Raises:
        UserError: it is not, naming ``key``, where the value was found.
    """
    default = _DEFAULTS[setting]
    least = 0 if setting.endswith("_token_id") or setting in _FROM_ZERO else 1
    match default:
        case bool() | None:  # where None is the choice of another setting
            fits, kind = isinstance(value, bool), "true or false"
        case int():
            fits = type(value) is int and least <= value <= LARGEST
            kind = f"a whole number from {least} to {LARGEST}"
        case float():
            # Infinity, or a whole number that no float holds, would come out as NaN.
            fits = type(value) in (int, float) and 0 <= value <= sys.float_info.max
            kind = "a number from 0 on"
        case str():
            fits, kind = isinstance(value, str), "a name"
        case _:
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
            kind = "a list of names"
    if not fits:
        raise UserError(f"{key or setting}: {value!r} is not {kind}")
    return float(value) if isinstance(default, float) else value


def layer_kinds(config: EncoderConfig) -> list[str]:
    """`global` or `local` for each layer."""
    return [config.layer_attention(index) for index in range(config.num_hidden_layers)]


def layer_pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that, repeated, gives ``kinds``.

    >>> layer_pattern(["global", "local", "local", "global", "local"])
    ('global', 'local', 'local')
    """
    return next(
        tuple(kinds[:period])
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds))
    )
