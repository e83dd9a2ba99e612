"""Sets of the Hugging Face Hub by name, ``hub:NAME[:CONFIG[:SPLIT]]``, through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlm.errors import UserError


def is_hub(source: str | Path) -> bool:
    """Whether ``source`` names a set on the Hub, not a file.

    >>> is_hub("hub:nyu-mll/glue:rte"), is_hub("rte/train.parquet")
    (True, False)
    """
    return str(source).startswith("hub:")


def open_hub(source: str, streaming: bool = False) -> Any:
    """The `datasets` set that ``source`` names; without a split its `train`.

    Raises:
        UserError: not of that form, no such set, or no network.
    """
    _, name, config, split, *more = [*source.split(":"), "", ""]
    if not name or any(more):
        raise UserError(f"{source}: write hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT")
    from datasets import load_dataset

    with hub_errors(source):
        return load_dataset(name, config or None, split=split or "train", streaming=streaming)


def read_hub_table(source: str) -> pa.Table:
    """All rows of the set that ``source`` names.

    A class is its number, as in the files of GLUE; in a list, where it is a tag, its name.

    Raises:
        UserError: as `open_hub`.
    """
    found = open_hub(source)
    from datasets import ClassLabel

    with hub_errors(source):
        table: pa.Table = found.with_format("arrow")[:]
        for place, name in enumerate(table.column_names):
            inner = getattr(found.features[name], "feature", None)
            if isinstance(inner, ClassLabel):
                rows = table.column(name).to_pylist()
                tags = [None if row is None else inner.int2str(row) for row in rows]
                table = table.set_column(place, name, pa.array(tags, pa.list_(pa.string())))
        return table


@contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Turn what reading ``source`` raises, also row by row, into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # many libraries' errors come through: HTTP, files, formats
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"{source}: cannot be read from the Hugging Face Hub; is there a network, and is the "
            f"name right? ({reason})"
        ) from None
