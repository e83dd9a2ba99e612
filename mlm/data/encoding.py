"""Texts to token ids, on all cores, in order and in constant memory.

Most words of a text were met before. Where a tokenizer never joins what a space parts, as those of
`mlm.data.tokenizer`, ids are looked up word by word, and only new words are tokenised: the result
is the same and comes sooner. Any other tokenizer encodes whole texts.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from tokenizers import AddedToken, Tokenizer

from mlm.data.tokenizer import num_ids, treatment_of_spaces

Tag = TypeVar("Tag")

# Characters of words that one process remembers: some 400,000 words, about 70 MB.
_REMEMBERED = 1 << 22

# A code point that Unicode reserves for programs' own use parts the words of one encoding.
_PARTING = "\ufdd0"

_BEFORE_VISIBLE = re.compile(r" (?=\S)")


class Encoded(NamedTuple):
    """``n`` texts as ids, and what was counted on the way."""

    ids: np.ndarray
    """(tokens,) unsigned: all texts end to end, without special tokens."""
    ends: np.ndarray
    """(n,) int64: where each text ends in ``ids``."""
    hashes: np.ndarray
    """(n,) uint64: `text_hash` of each text."""
    characters: np.ndarray
    """(n,) int64."""
    words: np.ndarray
    """(n,) int64: what stands between spaces and line ends."""
    bytes: np.ndarray
    """(n,) int64: in UTF-8."""


def id_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id."""
    return np.min_scalar_type(num_ids(tokenizer) - 1)


def text_hash(text: str, seed: int) -> int:
    """64 bits that follow from ``text`` and ``seed``, the same on every machine."""
    return _hash(text.encode(), seed.to_bytes(8, "little", signed=True))


def _hash(data: bytes, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "little")


class TextEncoder:
    """Texts to ids, in one process. Special tokens that a text spells out are plain text in it."""

    # The table of known words: word at place p has ids[starts[p] : starts[p + 1]].
    _places: _Places
    _starts: np.ndarray
    _ids: np.ndarray
    _remembered: int

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._seed = seed.to_bytes(8, "little", signed=True)
        self._spaces = treatment_of_spaces(tokenizer)
        self._dtype = id_type(tokenizer)
        if self._spaces:
            self._tokenizer.add_tokens([AddedToken(_PARTING, normalized=False)])
            self._parting = self._tokenizer.token_to_id(_PARTING)
            self._forget()

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Encode ``texts``, each by itself."""
        data = [text.encode() for text in texts]
        words = [_words(text) for text in texts]
        if self._spaces == "dropped":
            ids, ends = self._look_up(words)
        elif self._spaces == "kept":
            ids, ends = self._look_up([_with_spaces(text) for text in texts])
        else:
            ids, ends = self._encode(texts)
        return Encoded(
            ids,
            ends,
            hashes=_numbers((_hash(d, self._seed) for d in data), np.uint64, len(texts)),
            characters=_numbers(map(len, texts), np.int64, len(texts)),
            words=_numbers((len(w) - w.count("") for w in words), np.int64, len(texts)),
            bytes=_numbers(map(len, data), np.int64, len(texts)),
        )

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        ends = np.cumsum(_numbers(map(len, lists), np.int64, len(lists)))
        return _numbers(chain.from_iterable(lists), self._dtype, int(ends[-1])), ends

    def _look_up(self, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        words = list(chain.from_iterable(texts))
        places = _numbers(map(self._places.__getitem__, words), np.int64, len(words))
        self._learn(self._places.new)
        starts = self._starts[places]
        lengths = self._starts[places + 1] - starts
        ends = np.concatenate(([0], np.cumsum(lengths)))
        # Token i of a word that starts at s in the table and at e in the result: table[s + i - e].
        ids = self._ids[np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)]
        if self._remembered > _REMEMBERED:
            self._forget()
        return ids, ends[np.cumsum(_numbers(map(len, texts), np.int64, len(texts)))]

    def _learn(self, words: list[str]) -> None:
        """Tokenise new words, and append them to the table in their order."""
        if not words:
            return
        keys = [word.replace(_PARTING, "\ufffd") for word in words]
        if self._spaces == "kept":
            keys = [key[1:] if key.startswith(" ") else " " + key for key in keys]
        joined = _PARTING.join([*keys, ""])
        encoding = self._tokenizer.encode_batch_fast([joined], add_special_tokens=False)[0]
        ids = np.array(encoding.ids, dtype=np.int64)
        is_parting = ids == self._parting
        ends = np.flatnonzero(is_parting) - np.arange(len(words))
        self._starts = np.concatenate((self._starts, ends + self._starts[-1]))
        self._ids = np.concatenate((self._ids, ids[~is_parting].astype(self._dtype)))
        self._remembered += sum(map(len, words))
        words.clear()

    def _forget(self) -> None:
        self._places = _Places()
        self._ids = np.empty(0, dtype=self._dtype)
        self._starts = np.zeros(1, dtype=np.int64)
        self._remembered = 0


class _Places(dict[str, int]):
    """Word → its place in the table; one that is asked for the first time gets the next."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        place = self[word] = len(self)
        self.new.append(word)
        return place


def _words(text: str) -> list[str]:
    """The words of ``text``, and nothing for one space beside another."""
    return text.replace("\n", " ").split(" ")


def _with_spaces(text: str) -> list[str]:
    """``text`` cut before each space that something visible follows; that space is left out.

    What stands at the start, with no space before it, is marked by one. White space before a line's
    end, or before other white space, is one piece to the tokenizer.
    """
    words = _BEFORE_VISIBLE.split(text)
    words[0] = " " + words[0]
    return words


def _numbers(values: Iterable[int], dtype: Any, count: int) -> np.ndarray:
    return np.fromiter(values, dtype=dtype, count=count)


def encode_batches(
    batches: Iterable[tuple[Tag, list[str]]],
    tokenizer: Tokenizer,
    processes: int,
    seed: int = 0,
) -> Iterator[tuple[Tag, Encoded]]:
    """Encode batches of texts on ``processes`` cores.

    Few batches are in flight at any time, so memory stays where it is however long this goes on.

    Args:
        batches: (anything, texts); half a million characters make a good batch.
        tokenizer: any.
        processes: how many; with one, or with a single batch, the work is done here.
        seed: of the hashes.

    Yields:
        (what came with the batch, its texts encoded), in the order of ``batches``.
    """
    batches = iter(batches)
    start = list(islice(batches, 2))
    batches = chain(start, batches)
    if processes == 1 or len(start) < 2:
        encoder = TextEncoder(tokenizer, seed)
        for tag, texts in batches:
            yield tag, encoder(texts)
        return
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(processes))
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(processes):
            worker = _Worker(tokenizer, seed)
            stack.callback(worker.stop)  # before the threads end: one may be waiting for it
            idle.put(worker)

        def encode(texts: list[str]) -> Encoded:
            worker = idle.get()
            try:
                return worker(texts)
            finally:
                idle.put(worker)

        pending: deque[tuple[Tag, Future[Encoded]]] = deque()
        for tag, texts in batches:
            pending.append((tag, threads.submit(encode, texts)))
            if len(pending) > 2 * processes:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()


class _Worker:
    """A process with a `TextEncoder`; it ends when this one does, however that comes about."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        # Not multiprocessing: `spawn` would run the caller's script again, and a fork would copy
        # the threads' locks.
        code = f"import sys; sys.path[:] = {sys.path!r}; import mlm.data.encoding as e; e.serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: Any = self._process.stdin
        self._from: Any = self._process.stdout
        pickle.dump((tokenizer.to_str(), seed), self._to)

    def __call__(self, texts: list[str]) -> Encoded:
        try:
            pickle.dump(texts, self._to, protocol=5)
            self._to.flush()
            return Encoded(*pickle.load(self._from))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self._process.wait()
            raise RuntimeError(
                f"a tokenising process ended with code {code} (-9 is often a lack of memory)"
            ) from None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """The life of a worker process: texts come in on stdin, encodings go out on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and decides
    source: BinaryIO = sys.stdin.buffer
    sink: BinaryIO = sys.stdout.buffer
    try:
        tokenizer, seed = pickle.load(source)
        encoder = TextEncoder(Tokenizer.from_str(tokenizer), seed)
        while True:
            pickle.dump(tuple(encoder(pickle.load(source))), sink, protocol=5)
            sink.flush()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # the parent is gone
        os._exit(0)
