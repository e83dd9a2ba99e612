"""What a command's options are made of: the parser, config files, and messages in one line.

A command module has ``add_arguments(parser)``, which calls jsonargparse's own
``parser.add_argument("--output", type=str, required=True, help=…)`` and
``parser.add_class_arguments(DataOptions, "data")`` (a dataclass; the docstring under each field is
its help), and ``run(args)``, which finds the values under the same names: ``args.output``,
``args.data.path``. `settings` turns them into a plain dict, ready for `mlm.config_files.to_yaml`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import jsonargparse

from mlm.config_files import Setting, did_you_mean, find_config, read_config, shortened, to_yaml
from mlm.errors import UserError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
jsonargparse.set_dumper("yaml", to_yaml)

# `--data X` is short for `--data.path X`.
SHORTHANDS = ("data", "model")


class CommandParser(jsonargparse.ArgumentParser):
    """The options of one command: ``--config``, ``--print_config`` and what the command adds.

    What is wrong raises `UserError`: one line with the key and, from a config file, file and line.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"mlm {command}", description=description, allow_abbrev=False)
        self.command = command
        self.limits: tuple[str, ...] = ()
        self._from_config: dict[str, Setting] = {}
        self.add_argument(
            "--config",
            action="config",
            metavar="FILE|NAME",
            help="a YAML file of settings, or the name of a shipped one; options override it",
        )

    def add_limits(self, *keys: str) -> None:
        """Name the settings that end a run, each of which replaces the others.

        When one of them is typed on the command line, those of the config files are dropped before
        parsing, so that only what was typed is in force (``--print_config`` shows it). Each must
        have a default that means "no limit".
        """
        self.limits = keys

    def parse(
        self, argv: Sequence[str], given: Mapping[str, Setting] | None = None
    ) -> jsonargparse.Namespace:
        """The values of every option, from the defaults, the config files and ``argv``.

        Args:
            argv: the words after ``mlm COMMAND``.
            given: settings that another file holds, by dotted key; they come before ``argv``'s.

        Raises:
            UserError: anything that is wrong with them.
        """
        known = self.known()
        self._tidy_help()
        words, configs = expand(argv, known)
        typed = typed_keys(words)
        self._from_config = dict(given or {})
        for name in configs:
            self._from_config |= read_config(find_config(name, self.command), known)
        # An option wins wherever it stands, and with it whatever it replaces goes.
        limited = any(key == k or key.startswith(f"{k}.") for key in typed for k in self.limits)
        for key in typed.union(self.limits if limited else ()):
            self._from_config.pop(key, None)
        lists = {action.dest for action in self._actions if action.nargs == "+"}
        for key in lists & self._from_config.keys():
            if isinstance(self._from_config[key].value, dict):
                raise UserError(self._located(key, "expected a list, got named values"))
        try:
            if self._from_config:
                text = to_yaml({key: setting.value for key, setting in self._from_config.items()})
                words = [f"--config={text}", *words]
            args = self.parse_args(words)
        except OverflowError as error:
            culprit = re.search(r"([\w.]+)[:= ]+[-+]?\d{300}", " ".join(words))
            problem = "this number is too large"
            raise UserError(self._located(culprit[1], problem) if culprit else problem) from error
        except RecursionError as error:
            raise UserError("the values are nested too deeply") from error
        except ValueError as error:
            self.error(str(error))
        args.pop("config", None)
        for key, value in _flat(settings(args)):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(self._located(key, f"expected a finite number, got {value}"))
            if isinstance(value, str) and "\0" in value:
                raise UserError(self._located(key, "a zero byte stands in no text and no path"))
        return args

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse found, said in one line."""
        raise UserError(self._explain(message)) from ex

    def known(self) -> set[str]:
        """Every key that a value can be given to, dotted."""
        keys = {
            action.dest
            for action in self._actions
            if not isinstance(action, argparse._HelpAction)
            and not action.dest.endswith(".help")
            and action.dest not in {"config", "print_config", "print_shtab"}
        }
        return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}

    def _tidy_help(self) -> None:
        """A usage line of what is needed; shorthands told; groups and classes as options hidden."""
        words = [self.prog]
        for action in self._actions:
            group, _, name = action.dest.rpartition(".")
            if not action.option_strings:
                words.append(_shown(action) + ("…" if action.nargs else ""))
            elif action.required:
                words.append(f"{_shown(action)} {action.metavar or action.dest.upper()}")
            if type(action).__name__ == "_ActionConfigLoad" or name == "help":
                action.help = argparse.SUPPRESS
            elif _shown(action) == f"--{group}" and "for short" not in str(action.help):
                action.help = f"{action.help} (--{group} for short)"
        self.usage = " ".join([*words, "[options]"]).replace("%", "%%")

    def _located(self, key: str, problem: str) -> str:
        """``problem`` with the key, and where a config file set it."""
        if key in self._from_config:
            return f"{self._from_config[key].where}: {key}: {problem}"
        return f"--{key}: {problem}" if key in self.known() else f"{key}: {problem}"

    def _explain(self, message: str) -> str:
        """jsonargparse's message in one line that says which key and which value."""
        if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            return self._explain_unrecognized(match[1].split(" ")[0])
        if match := re.match(r"the following arguments are required: (.*)", message):
            shown = {action.dest: _shown(action) for action in self._actions}
            needed = [shown.get(key, key) for key in match[1].split(", ")]
            return f"{self.prog} needs {' and '.join(needed)} (see {self.prog} --help)"
        if match := re.match(r"argument (--[\w.-]+)\S*: (.*)", message, re.DOTALL):
            return f"{match[1]}: {_one_line(match[2])}"
        # A problem inside a config text comes wrapped in `Parser key "config"`.
        keys = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key != "config"]
        if not keys:
            return _one_line(message)
        key = keys[-1]
        if nested := re.search(r"NestedArg\(key='([^']*)'", message):
            return self._explain_unrecognized(f"--{key}.{nested[1]}")
        hints = [getattr(a, "_typehint", None) for a in self._actions if a.dest == key]
        given = re.search(r"Given value: (.*)", message, re.DOTALL)
        value = given or re.search(r"Got value: (.*)", message, re.DOTALL)
        if hints and hints[0] is not None and value and "Expected" in message:
            got = value[1].strip()
            expected = describe_type(hints[0])
            return self._located(key, f"expected {expected}, got {shortened(got)!r}")
        return self._located(key, _one_line(message.rpartition(f'Parser key "{key}":')[2]))

    def _explain_unrecognized(self, word: str) -> str:
        """The message for the first word that no option takes."""
        if not word.startswith("-"):
            return f"unexpected argument {word!r} (see {self.prog} --help)"
        name = word.split("=")[0]
        options = [s.lstrip("-") for a in self._actions for s in a.option_strings if s[:2] == "--"]
        near = did_you_mean(name.lstrip("-"), [o for o in options if not o.endswith("+")], "--")
        return f"{name}: no such option{near or f' (see {self.prog} --help)'}"


def expand(argv: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Rewrite the shorthands and take out the config files.

    Args:
        argv: the words after ``mlm COMMAND``.
        known: the dotted keys of the command.

    Returns:
        The words without ``--config``, and the names given to ``--config``, in order.

    >>> expand(["--data", "a.csv", "--config=mini", "--lr", "1"], {"data.path", "lr"})
    (['--data.path', 'a.csv', '--lr', '1'], ['mini'])
    """
    words: list[str] = []
    configs: list[str] = []
    rest = iter(argv)
    for word in rest:
        option, equals, value = word.partition("=")
        key = option.removeprefix("--")
        if word == "--":
            return [*words, word, *rest], configs
        if option == "--config":
            name = value if equals else next(rest, None)
            if not name or name.startswith("--"):
                raise UserError("--config: name a YAML file or a shipped config after it")
            configs.append(name)
        elif not option.startswith("--") or key in known:
            words.append(word)
        elif key in SHORTHANDS and f"{key}.path" in known:
            words.append(f"--{key}.path{equals}{value}")
        elif group := sorted(k for k in known if k.startswith(f"{key}.")):
            raise UserError(f"{option}: this is a group of settings; name one, as --{group[0]}")
        else:
            words.append(word)
    return words, configs


def typed_keys(words: Sequence[str]) -> set[str]:
    """The keys that the options in ``words`` set; ``--a+=1`` adds to a list, so it is not one.

    >>> sorted(typed_keys(["--a.b", "1", "--c=2", "--", "--d"]))
    ['a.b', 'c']
    """
    end = words.index("--") if "--" in words else len(words)
    keys = {word[2:].partition("=")[0] for word in words[:end] if word.startswith("--")}
    return {key for key in keys if not key.endswith("+")}


def settings(args: jsonargparse.Namespace) -> dict[str, Any]:
    """Every value of ``args`` as nested plain dicts: what ``config.yaml`` and the log hold."""
    return args.as_dict()


def describe_type(hint: Any) -> str:
    """A type as people say it.

    >>> describe_type(list[str] | None)
    'a list of texts or null'
    """
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    names |= {NoneType: "null", Any: "a value"}
    if hint in names:
        return names[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return " or ".join(describe_type(i) for i in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} values, as in {list(range(1, len(inner) + 1))}"
    if origin in {list, tuple, set}:
        plural = {"an integer": "integers", "a number": "numbers", "a text": "texts"}
        one = describe_type(inner[0])
        return f"a list of {plural.get(one, one)}"
    if origin is dict:
        return "a mapping"
    return getattr(hint, "__name__", str(hint))


def add_data_path(parser: jsonargparse.ArgumentParser, help: str, required: bool = True) -> None:
    """``--data.path``, or ``--data`` for short."""
    parser.add_argument("--data.path", type=str, required=required, metavar="PATH", help=help)


def add_model_path(
    parser: jsonargparse.ArgumentParser,
    help: str = "a model folder, such as RUN_DIR/model",
    required: bool = True,
) -> None:
    """``--model.path``, or ``--model`` for short."""
    parser.add_argument("--model.path", type=str, required=required, metavar="MODEL", help=help)


def add_activation_checkpointing(parser: jsonargparse.ArgumentParser) -> None:
    """``--activation_checkpointing``: memory for time."""
    parser.add_argument(
        "--activation_checkpointing",
        type=bool,
        default=False,
        help="compute each layer a second time in the backward pass instead of keeping what it "
        "made: a third more arithmetic, much less memory for large models and long sequences",
    )


def add_vector_arguments(parser: jsonargparse.ArgumentParser, prefix: str = "") -> None:
    """``--pooling`` and ``--normalize``: how the vectors of tokens become a text's."""
    parser.add_argument(
        "--pooling",
        type=Literal["mean", "cls", "max"] | None,
        default=None,
        help=f"{prefix}of a text's tokens; by default what the model was trained with, else mean",
    )
    parser.add_argument(
        "--normalize",
        type=bool | None,
        default=None,
        help=f"{prefix}vectors of length 1; by default what the model was trained with, else no",
    )


def _shown(action: argparse.Action) -> str:
    """What people call an option or a positional argument."""
    if not action.option_strings:
        return str(action.metavar or action.dest.upper())
    group, _, name = action.dest.rpartition(".")
    return f"--{group}" if name == "path" and group in SHORTHANDS else f"--{action.dest}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _one_line(text: str) -> str:
    return " ".join(text.split())
