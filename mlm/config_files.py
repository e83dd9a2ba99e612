"""YAML config files: finding shipped ones by name, reading them with the lines kept, writing them.

A config is a flat list of settings here, ``data.path`` rather than nested groups, because that is
what the command line overrides.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from mlm.errors import UserError

# Characters that the aliases of a file may stand for beyond a few times its own length.
_ALIAS_ROOM = 1 << 14


@dataclass(frozen=True)
class Setting:
    """One value of a config file, and where it stands."""

    value: Any
    """Plain Python: what YAML made of it."""
    where: str
    """File and line, for messages."""


def shipped_configs() -> Path:
    """The folder of the shipped configs: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(
    name: str, command: str, shipped: Path | None = None, option: str = "--config"
) -> Path:
    """The file that ``--config name`` means.

    A bare word is a shipped config of the command (``mini_cpu``); anything else, a path.

    Args:
        name: what the user typed.
        command: `pretrain`, `finetune`, …: shipped configs lie in one folder a command, and
            suites of sets in `suites`.
        shipped: the folder of shipped configs; by default this installation's.
        option: the option that names it, for messages.

    Raises:
        UserError: there is no such file; the shipped ones are listed.
    """
    folder = (shipped or shipped_configs()) / command
    # Shipped names come first, so that a command means the same in every working directory.
    named = folder / f"{name}.yaml"
    if Path(name).name == name and named.is_file():
        return named
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{option} {name}: this is a folder; name a YAML file")
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    hint = f"; the shipped ones are {', '.join(known)}" if known else ""
    raise UserError(f"{option} {name}: no such file{hint}")


def nearest(key: str, known: Collection[str]) -> str | None:
    """The known dotted key, or group of keys, that ``key`` was most likely meant to be.

    >>> nearest("data.labl_column", ["data.path", "data.label_column"])
    'data.label_column'
    >>> nearest("lr", ["data.path", "optimizer.lr"])
    'optimizer.lr'
    """
    group, _, name = key.rpartition(".")
    prefix = f"{group}." if group else ""
    # What is missing most often is the group; then a letter, among the names beside it.
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    if same_name:
        return (get_close_matches(key, same_name, n=1) or same_name)[0]
    siblings = {k.removeprefix(prefix).split(".")[0] for k in known if k.startswith(prefix)}
    if close := get_close_matches(name, siblings, n=1):
        return prefix + close[0]
    close = [] if siblings else get_close_matches(key, known, n=1, cutoff=0.75)
    return close[0] if close else None


def did_you_mean(key: str, known: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown key: the nearest known one, if any is near."""
    near = nearest(key, known)
    return f"; did you mean {prefix}{near}?" if near else ""


def read_config(path: Path, known: Collection[str]) -> dict[str, Setting]:
    """The settings of a YAML file by dotted key.

    Args:
        path: the file.
        known: every dotted key that the command takes. Where ``data.path`` is one, a plain text
            under ``data`` is short for it.

    Raises:
        UserError: not YAML, not a mapping, a key twice, a key that is not known, or aliases that
            explode.
    """
    settings: dict[str, Setting] = {}
    root = compose(path)
    # An empty file, or one of comments only, changes nothing.
    if root is not None:
        flatten(root, "", path, known, settings)
    return settings


def compose(path: Path) -> yaml.Node | None:
    """A YAML file as nodes, which know their lines; None for an empty one.

    Raises:
        UserError: not YAML, or aliases that explode.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Loader)
        if root is not None and _written_out(root, {}) > 4 * len(text) + _ALIAS_ROOM:
            raise UserError(f"{path}: its aliases (*) have no end, or stand for too much")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file (byte {error.start} is not UTF-8)") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not valid YAML: {error.problem or error.context}"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return root


def entries(
    node: yaml.Node | None, where: str, known: Collection[str], path: Path
) -> dict[str, yaml.Node]:
    """The nodes of a mapping by their keys.

    Args:
        node: what should be a mapping; None is none.
        where: says what it is of, for messages.
        known: the keys that it may have.
        path: the file.

    Raises:
        UserError: no mapping, a key that is not known, or one twice.
    """
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{where}: expected named values such as `{min(known)}`")
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        line = located(path, key_node)
        if key not in known:
            raise UserError(f"{line}: {key}: no such setting{did_you_mean(key, known)}")
        if key in found:
            raise UserError(f"{line}: {key} is set twice (before in {located(path, found[key])})")
        found[key] = value
    return found


def located(path: Path, node: yaml.Node) -> str:
    """The file and the line of a node, for messages."""
    return f"{path}, line {node.start_mark.line + 1}"


def _written_out(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Characters under ``node`` with each alias written out, roughly; a cycle is beyond any file.

    Nine lists that each hold the one before nine times are 300 bytes, and a billion values.
    """
    if id(node) not in sizes:
        sizes[id(node)] = 1 << 62  # what holds itself meets this
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = chain.from_iterable(inner) if isinstance(node, yaml.MappingNode) else inner
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        sizes[id(node)] = 1 + own + sum(_written_out(child, sizes) for child in pairs)
    return sizes[id(node)]


def flatten(
    node: yaml.Node, key: str, path: Path, known: Collection[str], into: dict[str, Setting]
) -> None:
    """Add what stands under ``key`` to ``into``, going down as far as there are groups."""
    where = located(path, node)
    prefix = f"{key}." if key else ""
    if not any(k.startswith(prefix) for k in known if k != key):
        if key not in known:
            raise UserError(f"{where}: {key}: no such setting{did_you_mean(key, known)}")
        if key in into:
            raise UserError(f"{where}: {key} is set twice (before in {into[key].where})")
        into[key] = Setting(construct(node, f"{where}: {key}"), where)
        return
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        for key_node, value_node in node.value:
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            flatten(value_node, prefix + name, path, known, into)
        return
    value = construct(node, f"{where}: {key}")
    if isinstance(value, str) and f"{prefix}path" in known and key:
        into[f"{prefix}path"] = Setting(value, where)
    elif value is not None:
        what = f"{key}: expected settings such as" if key else "expected settings such as"
        example = min(k for k in known if k.startswith(prefix))
        raise UserError(f"{where}: {what} `{example}`, got {shortened(repr(value))}")


def shortened(text: str) -> str:
    """``text``, or its beginning, as a message quotes it."""
    return text if len(text) <= 60 else f"{text[:60]}…"


def to_yaml(values: dict[str, Any]) -> str:
    """``values`` as the text of a config file that `read_config` reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of plain words: `off`, `1:30` and dates are text, `1e-3` is a number.

    https://yaml.org/spec/1.2.2/#103-core-schema
    """


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """A list used twice is written out twice, for people to read."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Line ends to YAML 1.1, which folds them to a space unless they are escaped.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

_Loader.yaml_implicit_resolvers = {}
_RESOLVERS: dict[str, tuple[str, str]] = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
for _class in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _RESOLVERS.items():
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^({_pattern})$"), list(_first)
        )
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda _, node: float(re.sub(r"\.(?=[a-z])", "", node.value.lower()))
)
_Dumper.add_representer(
    tuple, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data)
)


def construct(node: yaml.Node, where: str) -> Any:
    """What YAML makes of a node; ``where`` begins the message of a `UserError`."""
    try:
        return _Loader("").construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{where}: {problem}") from error
    except (KeyError, AttributeError, TypeError) as error:  # PyYAML looks up what is not there
        raise UserError(f"{where}: a value does not fit its tag, as in !!bool maybe") from error
