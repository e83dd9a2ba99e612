"""Tokenizers: train, load, save. The work is done by the `tokenizers` library.

Text is kept whole: nothing is dropped but white space, and accents only where asked. WordPiece
puts each ideograph, punctuation mark and emoji into a word of its own, so a character that it
does not know costs that word alone. Byte-level BPE and Unigram know every byte, hence no
[UNK], and keep line breaks as tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from mlm.errors import UserError, look_up

ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""The special tokens that a new tokenizer gets, as ids 0 to 4 in this order."""

# Tokenizers of language models name these instead.
_SAME_ROLE = {"cls": "bos", "sep": "eos"}
_OTHER_NAMES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}

# An ideograph; a run of letters, marks and digits (cut at 64, where WordPiece would give up on a
# word); or any other visible character with the marks and joiners that belong to it.
_WORD = (
    r"\p{Han}[\p{M}\p{Cf}]*"
    r"|[\p{L}\p{M}\p{N}\p{Cf}&&[^\p{Han}]]{1,64}"
    r"|[^\s\p{L}\p{M}\p{N}\p{Cf}][\p{M}\p{Cf}]*"
)
# GPT-2's pattern with marks counted as letters, for scripts that write vowels as marks, and every
# line break by itself, so that a text's ids are those of its lines joined.
_PIECE = (
    r"\n|'(?:[sdmt]|ll|ve|re)|\p{Han}+| ?[\p{L}\p{M}\p{Cf}&&[^\p{Han}]]+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{M}\p{N}\p{Cf}]+|[^\S\n]+(?!\S)|[^\S\n]+"
)

_WORDS = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)


def _byte_level_pieces(pattern: str) -> Any:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), to_bytes])


_PIECES = _byte_level_pieces(_PIECE)
# Learning takes more than linear time, and much memory, in the length of a piece.
_SHORT_PIECES = _byte_level_pieces(_PIECE.replace("+", "{1,256}"))
# WordPiece learns the most frequent characters that make up this share of the text; the rest,
# some thousand foreign letters in an encyclopedia, would cost more rows than they are worth.
_CHARACTER_COVERAGE = 0.99999
# The trainers reserve memory for all tokens asked for before they see how many there are.
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the five special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @property
    def ids(self) -> tuple[int, ...]:
        """All five; a tokenizer may use one token in two roles."""
        return astuple(self)


def train_tokenizer(
    texts: Collection[str],
    kind: str = "wordpiece",
    vocab_size: int = 16_384,
    lowercase: bool = True,
    strip_accents: bool = False,
) -> Tokenizer:
    """Learn a vocabulary from ``texts``.

    Args:
        texts: walked through twice for WordPiece; some 100 MB are plenty.
        kind: `wordpiece`, `bpe` or `unigram` (whose training in the `tokenizers` library is the
            one step that does not come out the same twice).
        vocab_size: tokens to learn at most, special tokens included; few texts may give fewer.
        lowercase: fold to lower case.
        strip_accents: drop accents and other combining marks.

    Raises:
        UserError: an unknown ``kind``, or a ``vocab_size`` too small for it or beyond reason.
    """
    check_vocab_size(kind, vocab_size)
    learn = KINDS[kind]
    steps: list[Any] = []
    if strip_accents:  # decompose, drop the marks, and compose again what else came apart
        steps += [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    if lowercase:
        steps += [normalizers.Lowercase()]
    normalizer = normalizers.Sequence(steps) if steps else None
    tokenizer = learn(texts, vocab_size, normalizer)
    tokenizer.normalizer = normalizer
    special = special_ids(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.cls), ("[SEP]", special.sep)],
    )
    return tokenizer


def _wordpiece(texts: Iterable[str], vocab_size: int, normalizer: Any) -> Tokenizer:
    # A character may take two rows, `x` and `##x`: leave at least a third of them for pieces.
    alphabet = _alphabet(texts, normalizer, limit=vocab_size // 3)
    inside_words = [f"##{c}" for c in alphabet if len(_WORDS.pre_tokenize_str("a" + c)) == 1]
    learner = Tokenizer(models.WordPiece())
    learner.normalizer = normalizer
    learner.pre_tokenizer = _WORDS
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # Left to itself the trainer numbers `##x` by a hash map's order, anew in each process,
        # and ties between pairs follow the numbers: given first, they make training repeatable.
        special_tokens=[*ROLES.values(), *inside_words],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    vocab = learner.get_vocab()
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=ROLES["unk"]))
    tokenizer.pre_tokenizer = _WORDS
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(ROLES.values()))
    return tokenizer


def _bpe(texts: Iterable[str], vocab_size: int, normalizer: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, **_byte_level_options())
    return _byte_level(models.BPE(unk_token=ROLES["unk"]), trainer, texts, normalizer)


def _unigram(texts: Iterable[str], vocab_size: int, normalizer: Any) -> Tokenizer:
    options = _byte_level_options()
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, unk_token=ROLES["unk"], **options)
    return _byte_level(models.Unigram(), trainer, texts, normalizer)


KINDS = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}


def _byte_level(model: Any, trainer: Any, texts: Iterable[str], normalizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = _SHORT_PIECES
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = _PIECES
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_level_options() -> dict[str, Any]:
    # A word's token holds the space before it, so a [MASK] in its place takes that space too.
    specials = [AddedToken(n, special=True, lstrip=r == "mask") for r, n in ROLES.items()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}


def _alphabet(texts: Iterable[str], normalizer: Any, limit: int) -> list[str]:
    """The most frequent characters, `_CHARACTER_COVERAGE` of ``texts``, at most ``limit``."""
    counts = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        found = np.bincount(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
        counts[: len(found)] += found
    by_count = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[by_count])
    enough = int(np.searchsorted(covered, _CHARACTER_COVERAGE * covered[-1])) + 1
    characters = "".join(map(chr, by_count[:enough].tolist()))
    if normalizer is not None:
        characters = normalizer.normalize_str(characters)
    return sorted([c for c in dict.fromkeys(characters) if not c.isspace()][:limit])


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a folder in Hugging Face's layout, without truncation and padding.

    Special tokens go by the names that ``tokenizer_config.json`` or ``special_tokens_map.json``
    gives them.

    Raises:
        UserError: no such folder, a missing or damaged file, or no token for one of the roles.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a tokenizer is a folder that holds tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("")  # a template with a token that there is not shows only now
        tokenizer.encode("", "")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and Rust's panics are none
        raise UserError(f"{path}: damaged, or no tokenizer ({error})") from None
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        names |= _special_names(directory / file)
    vars(tokenizer)["special_names"] = names
    try:
        special_ids(tokenizer)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    return tokenizer


def _special_names(path: Path) -> dict[str, str]:
    """{role: token} as far as ``path`` names them; a token is a string or a dict with `content`."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        tokens = {
            role: entries.get(f"{role}_token") or entries.get(f"{_SAME_ROLE.get(role)}_token")
            for role in ROLES
        }
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged, not a JSON object ({error})") from None
    names = {r: t.get("content") if isinstance(t, Mapping) else t for r, t in tokens.items()}
    return {role: name for role, name in names.items() if isinstance(name, str)}


def save_tokenizer(
    tokenizer: Tokenizer,
    directory: str | Path,
    model_max_length: int,
    token_types: bool = True,
) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``directory``, made if need be.

    The named class keeps `transformers` from rebuilding the tokenizer by the model's type, which
    would drop its normalizer and pre-tokenizer.

    Args:
        tokenizer: saved without truncation and padding.
        directory: where to.
        model_max_length: the longest sequence that the model takes, for `transformers`.
        token_types: whether the model takes them; `transformers` passes them on if so.
    """
    special = special_ids(tokenizer)
    tokens = {f"{r}_token": tokenizer.id_to_token(getattr(special, r)) for r in ROLES}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if token_types else []),
            "attention_mask",
        ],
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    plain = json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in (("tokenizer.json", plain), ("tokenizer_config.json", config)):
        text = json.dumps(value, ensure_ascii=False, indent=2)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids of the special tokens.

    Raises:
        UserError: there is no token for one of the roles.
    """
    chosen: dict[str, str] = vars(tokenizer).get("special_names", {})
    ids: dict[str, int] = {}
    for role, name in ROLES.items():
        names = [chosen[role]] if role in chosen else [name, _OTHER_NAMES[role]]
        found = [i for i in map(tokenizer.token_to_id, names) if i is not None]
        if not found and role == "unk" and "pad" in ids:  # byte-level: nothing is unknown
            found = [ids["pad"]]
        if not found:
            raise UserError(
                f"the tokenizer has no {role} token ({' or '.join(names)}); a masked language "
                f"model needs pad, unk, cls, sep and mask tokens"
            )
        ids[role] = found[0]
    return SpecialIds(**ids)


def num_ids(tokenizer: Tokenizer) -> int:
    """Ids are below it: the rows that an embedding needs."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def check_vocab_size(kind: str, vocab_size: int) -> None:
    """Refuse what `train_tokenizer` cannot learn, by a `UserError`."""
    look_up(KINDS, kind, "tokenizer kind")
    least = len(ROLES) + (20 if kind == "wordpiece" else 256)
    if vocab_size < least:
        raise UserError(f"vocab_size: {vocab_size} is too small; {kind} needs {least} or more")
    if vocab_size > _MOST_TOKENS:
        raise UserError(f"vocab_size: {vocab_size} is too large; {_MOST_TOKENS} is the most")


def treatment_of_spaces(tokenizer: Tokenizer) -> str | None:
    """Whether texts can be tokenised word by word, their ids joined.

    Returns:
        `dropped`: a text's ids are those of what stands between its spaces and line ends. `kept`:
        they are those of its stretches from one space that something visible follows to the
        next. None: who knows; it is known of what `train_tokenizer` makes, and of BERT's own.
    """
    parts = json.loads(tokenizer.to_str())
    if not all(token["special"] for token in parts["added_tokens"]):
        return None
    known = {"dropped": (_WORDS, pre_tokenizers.BertPreTokenizer()), "kept": (_PIECES,)}
    for name, pre_tokenizer in ((n, p) for n in known for p in known[n]):
        if parts["pre_tokenizer"] == json.loads(pre_tokenizer.__getstate__()):
            return name
    return None


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A sha256 of all that decides which ids a text gets: vocabulary, model and pre-processing.

    Truncation, padding, post-processor and decoder do not count, nor how the file was laid out.
    """
    # The library reads a Unigram's scores back with the last bits changed: round them.
    parts = json.loads(tokenizer.to_str(), parse_float=lambda text: f"{float(text):.6g}")
    kept = {name: parts[name] for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def frame_hash(tokenizer: Tokenizer) -> str:
    """A sha256 of what `tokenizer_hash` leaves out and a model's numbers depend on all the same.

    That is which ids have a role, and what is put around a text and a pair. Taken from what the
    tokenizer does, so it does not matter how the file says so.
    """
    special = special_ids(tokenizer)
    text = tokenizer.id_to_token(special.pad)  # as a text it is itself, whatever the model
    encoded = [tokenizer.encode(text), tokenizer.encode(text, text)]
    frames = [(encoding.ids, encoding.type_ids) for encoding in encoded]
    return hashlib.sha256(repr((special.ids, frames)).encode()).hexdigest()
