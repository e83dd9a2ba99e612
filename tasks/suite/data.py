"""The tables of a set: read, and cut into what is learnt from, chosen by and scored."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlm.data.hub import is_hub
from mlm.data.keys import mix
from mlm.data.order import permute
from mlm.errors import UserError
from mlm.files import atomic_folder
from tasks.rows import Rows
from tasks.suite.plan import SuiteSet

SPLITS = ("train", "validation", "test")
# Names the order in which rows are drawn: one for all sets, seeds and encoders.
_DRAW = mix(0x5017E)


def read_sources(entry: SuiteSet, data_dir: Path) -> dict[str, list[Rows]]:
    """The tables that a set names, as they are; of a validation that is cut off, none.

    Raises:
        UserError: a table that cannot be read, or fewer rows than are to be drawn from it.
    """
    names = {"train": (entry.train,), "validation": (), "test": entry.test}
    if isinstance(entry.validation, str):
        names["validation"] = (entry.validation,)
    sources = {split: [_read(name, data_dir) for name in found] for split, found in names.items()}
    held_out = entry.validation if isinstance(entry.validation, int) else 0
    rows, wanted = sources["train"][0].table.num_rows, held_out + (entry.train_rows or 1)
    if rows < wanted:
        raise UserError(
            f"{sources['train'][0].path}: has {rows} rows, and {wanted} are to be drawn from it"
        )
    return sources


def cut(entry: SuiteSet, sources: dict[str, list[Rows]]) -> dict[str, pa.Table]:
    """The three tables of a set; which rows are drawn depends on their number alone.

    Raises:
        UserError: tables to be joined whose columns do not go together.
    """
    train = sources["train"][0].table
    tables = {split: _joined(sources[split]) for split in ("validation", "test") if sources[split]}
    held_out = entry.validation if isinstance(entry.validation, int) else 0
    size = train.num_rows
    order = [permute(place, size, _DRAW) for place in range(size)]
    if held_out:
        tables["validation"] = train.take(sorted(order[:held_out]))
    last = held_out + entry.train_rows if entry.train_rows else size
    if (held_out, last) != (0, size):
        train = train.take(sorted(order[held_out:last]))
    return {"train": train, **tables}


def keep(folder: Path, tables: dict[str, pa.Table]) -> None:
    """Write the tables of a set, for all its runs to read."""
    with atomic_folder(folder) as draft:
        for split in SPLITS:
            pq.write_table(tables[split], draft / f"{split}.parquet", compression="zstd")


def kept(folder: Path, split: str) -> Path:
    """Where `keep` wrote a table."""
    return folder / f"{split}.parquet"


def count_rows(folder: Path) -> dict[str, int]:
    """Rows of each table that `keep` wrote."""
    return {split: pq.read_metadata(kept(folder, split)).num_rows for split in SPLITS}


def _read(name: str, data_dir: Path) -> Rows:
    return Rows.read(name if is_hub(name) else data_dir / name)


def _joined(parts: list[Rows]) -> pa.Table:
    first, *more = parts
    names = [n for n in first.table.column_names if all(n in p.table.column_names for p in more)]
    try:
        return pa.concat_tables(
            [p.table.select(names) for p in parts], promote_options="permissive"
        )
    except pa.ArrowException as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{more[0].path}: cannot be joined to {first.path} ({reason})") from None
