"""The demo's corpus: the documentation that every Python installation carries with it.

Nothing is downloaded and nothing is imported: source files are parsed with `ast`, and the language
reference, which `pydoc_data` holds as one large dictionary, is read as a literal.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    # Tests talk about tests, and what pip put there differs from one machine to the next.
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}
    | {"idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data"}
)
MINIMUM_WORDS = 4

_WORD = re.compile(r"[A-Za-z]{2,}")
_PROMPT = re.compile(r"\s*>>>")
_RULE = re.compile(r"^\s*([*=~^\-_#+.|])\1{3,}[\s*=~^\-_#+.|]*$", re.MULTILINE)


def python_documentation(root: Path | None = None) -> Iterator[str]:
    """The documents, in an order that depends on the installation alone, each one once.

    First the language reference, a topic a document; then the docstrings of the standard library,
    one a document, file by file. A file that is missing, unreadable or not Python is passed over.

    Args:
        root: the standard library's folder; None for that of the Python running now.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    seen: set[str] = set()
    for text in chain(_topics(root / "pydoc_data" / "topics.py"), _docstrings(root)):
        document = clean(text)
        # The same words in other line breaks or capitals are the same document.
        key = " ".join(document.lower().split())
        if len(_WORD.findall(document)) >= MINIMUM_WORDS and key not in seen:
            seen.add(key)
            yield document


def clean(text: str) -> str:
    """Prose as it is, without indentation, underlines of titles and doctest blocks.

    A doctest block runs from a prompt to the next blank line; what is typed and what comes back say
    little that a masked word could be guessed from.

    >>> clean("Add two numbers.\\n\\n    >>> add(1, 2)\\n    3\\n\\n    Both are integers.")
    'Add two numbers.\\n\\nBoth are integers.'
    """
    kept: list[str] = []
    in_doctest = False
    for line in _RULE.sub("", inspect.cleandoc(text)).splitlines():
        in_doctest = bool(_PROMPT.match(line)) or (in_doctest and bool(line.strip()))
        if not in_doctest:
            kept.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _topics(path: Path) -> Iterator[str]:
    """The language reference: the values of the dictionary that ``path`` assigns."""
    tree = _parse(path)
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for value in node.value.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _docstrings(root: Path) -> Iterator[str]:
    """The docstrings of every module, class and function below ``root``, file by file."""
    for path in _source_files(root):
        tree = _parse(path)
        for node in ast.walk(tree) if tree else ():
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and (docstring := ast.get_docstring(node, clean=False)):
                yield docstring


def _source_files(folder: Path) -> Iterator[Path]:
    """Every ``.py`` file below ``folder`` in sorted order, skipped folders never entered."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError:
        return
    for path in entries:
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS and not path.is_symlink():
                yield from _source_files(path)
        elif path.suffix == ".py":
            yield path


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree of ``path``; None where it cannot be read or is not Python of today."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's source are no news to the person who runs the demo.
            warnings.simplefilter("ignore")
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
