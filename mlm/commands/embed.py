"""``mlm embed``: one vector a text, into a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import numpy as np

from mlm.arguments import add_model_path, add_vector_arguments
from mlm.errors import UserError
from mlm.files import atomic_file


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """The options of ``mlm embed``."""
    add_model_path(parser)
    add = parser.add_argument
    add(
        "--input",
        type=str,
        required=True,
        metavar="FILE",
        help="a .txt with one text a line, or a table: .parquet, .csv, .tsv, .jsonl",
    )
    add(
        "--output",
        type=str,
        required=True,
        metavar="FILE",
        help="a .jsonl, .npy or .parquet; row i is the vector of text i",
    )
    add("--text_column", type=str, default="text", help="the table's column of texts")
    add_vector_arguments(parser)


def run(args: jsonargparse.Namespace) -> None:
    """Write the vectors, and print how many there are and how wide."""
    output = Path(args.output)
    writer = WRITERS.get(output.suffix.lower())
    if writer is None:
        raise UserError(
            f"{output}: vectors go to {', '.join(WRITERS)}; choose one of these endings"
        )

    from mlm.data.tables import read_texts
    from mlm.inference import Embedder
    from mlm.memory import keep_freed_memory

    keep_freed_memory()
    texts = read_texts(args.input, args.text_column)
    embedder = Embedder(args.model.path, args.pooling, args.normalize)
    vectors = embedder(texts)
    with atomic_file(output) as draft:
        writer(draft, vectors)
    print(json.dumps({"output": str(output), "texts": len(vectors), "width": vectors.shape[1]}))


def write_jsonl(path: Path, vectors: np.ndarray) -> None:
    """A line ``{"embedding": […]}`` a vector."""
    with path.open("w", encoding="utf-8") as file:
        for vector in vectors:
            # As short as tells float32 apart; a plain list would spell out 64 bits.
            numbers = ", ".join(map(str, vector))
            file.write(f'{{"embedding": [{numbers}]}}\n')


def write_npy(path: Path, vectors: np.ndarray) -> None:
    """(n, D) float32 in NumPy's format."""
    with path.open("wb") as file:
        np.save(file, vectors)


def write_parquet(path: Path, vectors: np.ndarray) -> None:
    """A column `embedding` of float32 lists of one width."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"embedding": column}), path)


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    ".jsonl": write_jsonl,
    ".npy": write_npy,
    ".parquet": write_parquet,
}
