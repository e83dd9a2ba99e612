"""A tokenizer with more tokens: whole words of a domain, after those it had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from mlm.data.tokenizer import num_ids, tokenizer_hash
from mlm.errors import UserError


def read_words(path: str | Path) -> list[str]:
    """The words of a text file, one a line, each once.

    Raises:
        UserError: no such file, no words in it, or two words on a line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise UserError(f"{path}, line {number}: {line!r} is more than one word")
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise UserError(f"{path}: has no words in it; give one a line")
    return words


def extend_tokenizer(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """A copy of ``tokenizer`` that has each of ``words`` as one token; known ones stay as they are.

    New tokens are found where the word stands alone, after the tokenizer's own normalisation.
    """
    extended = Tokenizer.from_str(tokenizer.to_str())
    vars(extended).update(vars(tokenizer))
    normalizer = extended.normalizer
    for word in words:
        shown = normalizer.normalize_str(word) if normalizer is not None else word
        # The library does it again where it looks for them: BERT's would part ideographs twice.
        if normalizer is not None and normalizer.normalize_str(shown) != shown:
            shown = word
        if extended.token_to_id(shown) is None:
            extended.add_tokens([AddedToken(shown, single_word=True, normalized=True)])
    return extended


def extends(tokenizer: Tokenizer, old: Tokenizer) -> bool:
    """Whether ``tokenizer`` is ``old`` with more tokens after those it had."""
    rows = num_ids(old)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    known = {token: number for token, number in vocabulary.items() if number < rows}
    words = [t for t, number in sorted(vocabulary.items(), key=lambda x: x[1]) if number >= rows]
    if known != old.get_vocab(with_added_tokens=True) or not words:
        return False
    return tokenizer_hash(extend_tokenizer(old, words)) == tokenizer_hash(tokenizer)
