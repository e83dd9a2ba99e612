"""Whether a token store was made from this corpus with these options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mlm.data.corpus import kind_of
from mlm.data.readers import OPENERS
from mlm.data.store import sha256
from mlm.data.tokenizer import tokenizer_hash
from mlm.errors import UserError


def describe_source(source: str) -> dict[str, Any]:
    """Name, size and time of a corpus file; of a set on the hub the name alone."""
    if source.startswith("hub:"):
        return {"name": source}
    status = Path(source).stat()
    return {"name": source, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def content_hash(source: str) -> str | None:
    """The sha256 of a corpus file; None for a set on the hub, which is known by its name."""
    return None if source.startswith("hub:") else sha256(Path(source))


def refuse_another(
    store: Path,
    manifest: dict[str, Any],
    sources: tuple[str, ...],
    options: dict[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    """Make sure that the store with ``manifest`` is what preparing again would give.

    Files of the same size and time are taken to be the same, as `make` does; any other is read.

    Args:
        store: where it stands, for messages.
        manifest: its manifest.
        sources: of the corpus.
        options: those that make a difference to the result.
        tokenizer: the one given, or None if one is to be trained.

    Raises:
        UserError: what is different.
    """
    advice = "choose another --output, or remove this store"
    was_given = manifest["tokenizer_given"]
    if was_given != (tokenizer is not None):
        how = "a given tokenizer" if was_given else "a tokenizer trained on its corpus"
        raise UserError(f"{store}: was prepared with {how}, unlike now; {advice}")
    if tokenizer is not None and tokenizer_hash(tokenizer) != manifest["tokenizer_hash"]:
        raise UserError(f"{store}: was prepared with another tokenizer; {advice}")
    for name, value in options.items():
        if manifest["options"].get(name) != value:
            raise UserError(
                f"{store}: was prepared with {name} {manifest['options'].get(name)}, "
                f"not {value}; {advice}"
            )
    before = manifest["sources"]
    if len(before) != len(sources):
        raise UserError(
            f"{store}: was prepared from {len(before)} files or sets, not {len(sources)}; {advice}"
        )
    for old, source in zip(before, sources, strict=True):
        if not _is_same(old, source):
            raise UserError(
                f"{store}: was prepared from another corpus ({source} differs from what was "
                f"{old['name']}); {advice}"
            )


def _is_same(old: dict[str, Any], source: str) -> bool:
    new = describe_source(source)
    if all(old.get(key) == value for key, value in new.items()):
        return True
    # Moved or touched perhaps; another ending would be read in another way.
    same_kind = old.get("bytes") == new.get("bytes") and _kind(old["name"]) == _kind(source)
    return same_kind and "bytes" in new and old["sha256"] == content_hash(source)


def _kind(name: str) -> tuple[str, str]:
    """The ending that tells a reader, and that of the compression, if any."""
    last = Path(name).suffix.lower()
    return kind_of(Path(name)), last if last in OPENERS else ""
