"""A corpus to a token store: hold documents out, learn a vocabulary, tokenise, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from mlm import __version__
from mlm.data.corpus import Piece, find_sources, has_columns, read_pieces
from mlm.data.encoding import Encoded, encode_batches, id_type
from mlm.data.extension import extend_tokenizer, read_words
from mlm.data.held_out import HeldOut, plan
from mlm.data.identity import content_hash, describe_source, refuse_another
from mlm.data.processes import check_processes
from mlm.data.progress import Meter, say
from mlm.data.readers import CorpusCounts, Rules
from mlm.data.sample import take_sample
from mlm.data.store import SPLITS, TokenStore, read_manifest
from mlm.data.store_writer import SplitWriter, building, new_store
from mlm.data.tokenizer import (
    check_vocab_size,
    load_tokenizer,
    num_ids,
    save_tokenizer,
    special_ids,
    tokenizer_hash,
    train_tokenizer,
)
from mlm.errors import UserError

# Bytes of text that a vocabulary is learned from; more takes longer and changes next to nothing.
_SAMPLE = 1 << 26

# Characters that go to a tokenising process at once.
_BATCH = 1 << 19

# What `transformers` writes for a tokenizer that belongs to no model.
_NO_LIMIT = int(1e30)


@dataclass(frozen=True)
class PrepareOptions:
    """What `mlm prepare` can be told."""

    corpus: list[str]
    """Files and folders of .txt, .jsonl, .csv, .tsv (also .xz, .gz), .parquet; or hub:NAME."""
    output: str
    """The folder of the token store, to be made."""
    tokenizer: str | None = None
    """A folder with the tokenizer to use, or a model's name on the Hugging Face Hub; without one, a
    tokenizer is trained."""
    add_tokens: str | None = None
    """A file of words, one a line, that the tokenizer given gets as tokens of their own."""
    vocab_size: int = 16_384
    """Tokens of a new tokenizer, at most."""
    tokenizer_kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """Of a new tokenizer; bpe and unigram work on bytes, so no text is unknown to them."""
    lowercase: bool = True
    """A new tokenizer folds text to lower case."""
    strip_accents: bool = False
    """A new tokenizer drops accents."""
    validation_share: float = 0.01
    """How much of the documents is held out; at least one document is."""
    text_column: str = "text"
    """The column of a table that holds the text."""
    invalid_utf8: Literal["error", "replace"] = "error"
    """What to do where a file is not UTF-8; what is replaced is counted."""
    num_processes: int | None = None
    """Tokenising processes; by default one for each core."""
    seed: int = 0
    """Decides which documents are held out, and which a vocabulary is learned from."""


_OF_NEW_TOKENIZERS = {"vocab_size", "tokenizer_kind", "lowercase", "strip_accents"}
_MAKE_NO_DIFFERENCE = {
    "corpus",
    "output",
    "tokenizer",
    "add_tokens",
    "num_processes",
}  # or are told by content


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Make the token store that ``options`` describe, or see that it is there already.

    Returns:
        The report: what was read and written, and how fast.

    Raises:
        UserError: a mistake in the options or the corpus, or another store in the place.
    """
    _check(options)
    sources = find_sources(options.corpus)
    if options.text_column != PrepareOptions.text_column and not any(map(has_columns, sources)):
        raise UserError("text_column: no source is a table; leave it out")
    tokenizer = _given_tokenizer(options)
    output = Path(options.output)
    with building(output.absolute(), lambda: say(f"{output}: being prepared; waiting")):
        manifest = read_manifest(output)
        if manifest is not None:
            refuse_another(output, manifest, sources, _compared(options), tokenizer)
            TokenStore.open(output)
            say(f"{output}: was prepared from this corpus with these options; nothing to do")
            return {"store": str(output), "status": "unchanged", **manifest["report"]}
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output}: exists and is no token store; choose another --output")
        report = _build(output, options, sources, tokenizer)
    return {"store": str(output), "status": "prepared", **report}


def _check(options: PrepareOptions) -> None:
    if not 0 < options.validation_share <= 0.5:
        raise UserError(f"validation_share: {options.validation_share} is not in (0, 0.5]")
    if options.num_processes is not None:
        check_processes("num_processes", options.num_processes, least=1)
    if not -(2**63) <= options.seed < 2**63:
        raise UserError(f"seed: {options.seed} does not fit in 64 bits")
    if options.add_tokens is not None and options.tokenizer is None:
        raise UserError("add_tokens: extends a tokenizer; say which one with --tokenizer")
    if options.tokenizer is None:
        check_vocab_size(options.tokenizer_kind, options.vocab_size)
    if not Path(options.output).absolute().name:
        raise UserError(f"output: {options.output} is no place for a store; give a folder's name")
    for field in fields(options) if options.tokenizer is not None else ():
        if field.name in _OF_NEW_TOKENIZERS and getattr(options, field.name) != field.default:
            raise UserError(f"{field.name}: the tokenizer given has its own; leave this out")


def _given_tokenizer(options: PrepareOptions) -> Tokenizer | None:
    if options.tokenizer is None:
        return None
    tokenizer = load_tokenizer(options.tokenizer)
    if options.add_tokens is not None:
        tokenizer = extend_tokenizer(tokenizer, read_words(options.add_tokens))
    return tokenizer


def _compared(options: PrepareOptions) -> dict[str, Any]:
    return {k: v for k, v in asdict(options).items() if k not in _MAKE_NO_DIFFERENCE}


def _build(
    output: Path,
    options: PrepareOptions,
    sources: tuple[str, ...],
    given: Tokenizer | None,
) -> dict[str, Any]:
    start = time.monotonic()
    counts = CorpusCounts()
    described = [describe_source(source) for source in sources]
    total = sum(entry.get("bytes", 0) for entry in described)

    def read() -> Iterator[Piece]:
        nonlocal counts
        counts = CorpusCounts()
        rules = Rules(options.text_column, options.invalid_utf8, counts)
        return read_pieces(sources, rules)

    def share() -> float | None:
        hub = any(source.startswith("hub:") for source in sources)
        return None if hub else counts.source_bytes / max(total, 1)

    held_out = plan(read, options.validation_share, options.seed, ", ".join(options.corpus))
    tokenizer = given or _train(held_out.for_training(read()), options, share)
    learned = time.monotonic()
    with new_store(output) as (draft, manifest):
        with Meter("tokenising", share) as meter:
            documents, splits = _write(draft, held_out, read(), tokenizer, options, meter)
        save_tokenizer(tokenizer, draft / "tokenizer", _NO_LIMIT)
        contents = [content_hash(source) for source in sources]
        if [describe_source(source) for source in sources] != described:
            raise UserError("corpus: a file changed while it was read; prepare again")
        end = time.monotonic()
        report = {
            **_report(splits, documents, counts),
            "vocab_size": num_ids(tokenizer),
            "megabytes": round(meter.megabytes, 3),
            "megabytes_per_second": round(meter.megabytes / (end - learned), 2),
            "seconds_learning": round(learned - start, 2),
            "seconds": round(end - start, 2),
        }
        manifest |= {
            "mlm_version": __version__,
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "tokenizer_given": given is not None,
            "vocab_size": num_ids(tokenizer),
            "splits": splits,
            "options": _compared(options),
            "sources": [
                {**entry, "sha256": content}
                for entry, content in zip(described, contents, strict=True)
            ],
            "report": report,
        }
    return report


def _train(
    pieces: Iterable[Piece], options: PrepareOptions, share: Callable[[], float | None]
) -> Tokenizer:
    with Meter("reading", share) as meter:
        sample = take_sample(pieces, _SAMPLE, options.seed, meter.add)
    say(f"learning {options.vocab_size:,} tokens from {sample.bytes / 1e6:,.1f} MB of text")
    return train_tokenizer(
        sample,
        options.tokenizer_kind,
        options.vocab_size,
        options.lowercase,
        options.strip_accents,
    )


def _write(
    draft: Path,
    held_out: HeldOut,
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    options: PrepareOptions,
    meter: Meter,
) -> tuple[int, dict[str, dict[str, int]]]:
    """Tokenise the corpus into both splits; documents read, and what there is of each split."""
    dtype = id_type(tokenizer)
    unknown = special_ids(tokenizer).unk
    writers = {name: SplitWriter(draft / name, name, dtype) for name in SPLITS}
    splits = {name: dict.fromkeys(("characters", "words", "unknown"), 0) for name in SPLITS}
    processes = options.num_processes or _cores()
    batches = _batches(held_out.divide(pieces))
    documents, begins, goes_on = 0, True, False  # whether the document that goes on is held out
    for last, encoded in encode_batches(batches, tokenizer, processes, options.seed):
        numbers = documents + np.cumsum(last) - last
        first = np.concatenate(([begins], last[:-1]))
        # A piece goes where the first one of its document went, perhaps in an earlier batch.
        origin = np.maximum.accumulate(np.where(first, np.arange(len(first)), -1))
        held = held_out.mask(encoded.hashes, numbers)
        held = np.where(origin < 0, goes_on, held[origin])
        documents, begins, goes_on = documents + int(last.sum()), last[-1], held[-1]
        for name, mine in zip(SPLITS, (~held, held), strict=True):
            ids = _add(writers[name], encoded, mine, last)
            splits[name]["characters"] += int(encoded.characters[mine].sum())
            splits[name]["words"] += int(encoded.words[mine].sum())
            splits[name]["unknown"] += int(np.count_nonzero(ids == unknown))
        meter.add(int(encoded.bytes.sum()))
    for name, writer in writers.items():
        writer.close()
        splits[name] |= {"documents": writer.documents, "tokens": writer.tokens}
        if not writer.tokens:
            raise UserError(f"corpus: no token is left for {name} once it is tokenised")
    return documents, splits


def _report(
    splits: dict[str, dict[str, int]], documents: int, counts: CorpusCounts
) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(split[name] for split in splits.values())

    return {
        "documents": total("documents"),
        # Blank ones, and those that the tokenizer makes nothing of.
        "empty_documents": counts.empty_documents + max(documents - total("documents"), 0),
        **{f"{name}_documents": split["documents"] for name, split in splits.items()},
        **{f"{name}_tokens": split["tokens"] for name, split in splits.items()},
        "tokens_per_word": round(total("tokens") / total("words"), 4),
        "unknown_share": round(total("unknown") / total("tokens"), 6),
        "invalid_characters": counts.invalid_characters,
    }


def _cores() -> int:
    """Those this process may run on, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _add(writer: SplitWriter, encoded: Encoded, mine: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Write the pieces that are ``mine`` and return their ids."""
    lengths = np.diff(encoded.ends, prepend=0)
    ids = encoded.ids[np.repeat(mine, lengths)]
    writer.add(ids, np.cumsum(lengths[mine])[last[mine]])
    return ids


def _batches(pieces: Iterable[Piece]) -> Iterator[tuple[np.ndarray, list[str]]]:
    """(whether each text is the last of its document, texts) of about `_BATCH` characters."""
    texts: list[str] = []
    last: list[bool] = []
    size = 0
    for piece in pieces:
        texts.append(piece.text)
        last.append(piece.last)
        size += len(piece.text)
        if size >= _BATCH:
            yield np.array(last), texts
            texts, last, size = [], [], 0
    if texts:
        yield np.array(last), texts
