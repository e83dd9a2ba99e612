"""A suite file: sets, and the settings by which an encoder is fine-tuned on each.

protocol:            # settings of `mlm finetune`, for all sets
  optimizer: {lr: 1e-4}
sets:
  - name: sst2
    train: sst2/train.parquet
    validation: 1000                # rows cut from train, or a file; chooses the best state
    test: [sst2/dev.parquet]        # what is scored at the end; several are joined
    metric: accuracy
    settings: {data: {max_length: 128}}   # of this set alone
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mlm.config_files import Setting, compose, construct, entries, flatten, located, shortened
from mlm.errors import UserError, look_up

# Settings of `mlm finetune` that a suite decides itself, set by set and seed by seed.
_OWN = {"train", "validation", "run_dir", "task", "model.path", "seed", "seeds", "resume"}
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class SuiteSet:
    """One set of a suite."""

    name: str
    """Also its folder's."""
    task: str
    """As ``mlm finetune --task``."""
    train: str
    """A table: a path, or ``hub:NAME:CONFIG:SPLIT``."""
    train_rows: int | None
    """How many of its rows are learnt from, the same ones always; None for all."""
    validation: str | int
    """A table, or how many rows of `train` are cut off for it."""
    test: tuple[str, ...]
    """The tables that are joined and scored at the end."""
    metric: str | None
    """What is scored, and chooses the best state; None takes the task's own."""
    settings: dict[str, Any]
    """All settings of ``mlm finetune``, nested by group."""
    where: str
    """File, line and name, for messages."""

    def identity(self) -> dict[str, Any]:
        """What decides the results, for `tasks.suite.run` to compare."""
        values = asdict(self)
        del values["where"], values["name"]
        settings = values["settings"]
        values["settings"] = {k: v for k, v in settings.items() if k not in {*_OWN, "logging"}}
        return values | {"test": list(self.test)}


@dataclass(frozen=True)
class Suite:
    """Sets, in their order."""

    name: str
    sets: tuple[SuiteSet, ...]


@dataclass(frozen=True)
class FineTuneOptions:
    """What `mlm finetune` can be told."""

    known: Collection[str]
    """Its settings, dotted."""
    limits: Collection[str]
    """Those of them that end a run, each of which replaces the others."""
    parse: Callable[[Mapping[str, Setting], str], dict[str, Any]]
    """(what a file sets, task) → all settings, nested."""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_table(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("letters, digits, - and _", _is_name),
    "task": ("the name of a task", lambda v: isinstance(v, str)),
    "train": ("a table", _is_table),
    "train_rows": ("a number of rows", lambda v: type(v) is int and v > 0),
    "validation": (
        "a table, or a number of rows of train",
        lambda v: _is_table(v) or (type(v) is int and v > 0),
    ),
    "test": (
        "a table, or a list of them",
        lambda v: _is_table(v) or (isinstance(v, list) and bool(v) and all(map(_is_table, v))),
    ),
    "metric": ("the name of a metric", lambda v: isinstance(v, str)),
}
_NEEDED = ("name", "train", "validation", "test")


def read_suite(path: Path, options: FineTuneOptions) -> Suite:
    """The suite in a YAML file, checked as far as that goes without its tables.

    Raises:
        UserError: anything that is wrong with it, with file and line.
    """
    top = entries(compose(path), str(path), {"protocol", "sets"}, path)
    known = [key for key in options.known if key not in _OWN]
    protocol = _settings(top.get("protocol"), path, known)
    listed = top.get("sets")
    if not isinstance(listed, yaml.SequenceNode) or not listed.value:
        raise UserError(f"{path}: sets: expected a list of sets")
    sets: dict[str, SuiteSet] = {}
    for node in listed.value:
        found = _read_set(node, path, protocol, known, options)
        # `A` and `a` are one folder on some machines.
        if found.name.lower() in (name.lower() for name in sets):
            raise UserError(f"{found.where}: the name stands there twice")
        sets[found.name] = found
    return Suite(path.stem, tuple(sets.values()))


def _read_set(
    node: yaml.Node,
    path: Path,
    protocol: Mapping[str, Setting],
    known: Collection[str],
    options: FineTuneOptions,
) -> SuiteSet:
    where = located(path, node)
    nodes = entries(node, where, {*_KEYS, "settings"}, path)
    values: dict[str, Any] = {}
    for key, (expected, fits) in _KEYS.items():
        if key in nodes:
            line = f"{located(path, nodes[key])}: {key}"
            value = values[key] = construct(nodes[key], line)
            if not fits(value):
                raise UserError(f"{line}: expected {expected}, got {shortened(repr(value))}")
    if missing := [key for key in _NEEDED if key not in values]:
        raise UserError(f"{where}: a set needs {' and '.join(missing)}")
    own = _settings(nodes.get("settings"), path, known)
    # A limit of the set's own takes the place of the protocol's.
    limited = any(key in options.limits for key in own)
    given = {k: v for k, v in protocol.items() if not (limited and k in options.limits)}
    task, test = values.get("task", "text_classification"), values["test"]
    return SuiteSet(
        name=values["name"],
        task=task,
        train=values["train"],
        train_rows=values.get("train_rows"),
        validation=values["validation"],
        test=(test,) if isinstance(test, str) else tuple(test),
        metric=values.get("metric"),
        settings=options.parse(given | own, task),
        where=f"{where}: set {values['name']}",
    )


def _settings(node: yaml.Node | None, path: Path, known: Collection[str]) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    if node is not None:
        flatten(node, "", path, known, settings)
    return settings


def choose_sets(suite: Suite, only: Sequence[str] | None) -> list[SuiteSet]:
    """Those of the sets that are named, in the suite's order; all where none is.

    Raises:
        UserError: a name that no set has.
    """
    named = {entry.name: entry for entry in suite.sets}
    for name in only or ():
        look_up(named, name, "--only")
    return [entry for entry in suite.sets if not only or entry.name in only]
