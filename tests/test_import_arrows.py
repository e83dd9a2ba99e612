"""Imports run one way: batch ← model, data ← objectives ← training; mlm ← tasks ← mlm/cli.py."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ["mlm.errors", "mlm.files", "mlm.console"]  # small things that anything may use
# Under every package stands what of ours it may import beside itself; the longest name counts.
MAY_IMPORT = {
    "mlm": ["mlm"],
    "mlm.errors": [],
    "mlm.batch": [],
    "mlm.memory": [],
    "mlm.files": ["mlm.errors", "mlm.console"],
    "mlm.console": ["mlm.errors"],
    "mlm.model": ["mlm.batch", "mlm.errors"],
    "mlm.data": ["mlm.batch", *TOOLS],
    "mlm.embedding": ["mlm.batch", "mlm.errors", "mlm.model"],
    "mlm.objectives": ["mlm.batch", "mlm.errors", "mlm.model", "mlm.data"],
    "mlm.training": [
        *(
            "mlm.batch",
            "mlm.memory",
            "mlm.config_files",
            "mlm.checkpoint",
            "mlm.embedding",
            "mlm.huggingface",
            "mlm.extending",
        ),
        *("mlm.model", "mlm.data", "mlm.objectives", *TOOLS),
    ],
    "tasks": ["mlm"],
}
NEVER_IMPORTED = ["mlm.cli", "mlm.commands", "tasks.commands"]  # they assemble; nothing needs them
# Seconds to import, or missing from many machines: only where they are used, inside a function.
LAZY = ["datasets", "wandb", "transformers", "sklearn", "matplotlib", "jsonargparse"]
LIGHTNING = ["pytorch_lightning", "lightning", "lightning_fabric"]
LIGHTNING_MODULES = [
    "mlm.training",
    "tasks.module",
    "tasks.datamodule",
    "tasks.finetuning",
    "tasks.single_run",
]


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is imported as soon as the importing module is."""

    target: str
    line: int
    at_once: bool


def under(module, package):
    return module == package or module.startswith(f"{package}.")


def imports(source, modules):
    """Every import in ``source``; of ``from package import name``, the module where name is one."""
    found = []

    def visit(node, at_once):
        match node:
            case ast.Import(names):
                found.extend(Import(name.name, node.lineno, at_once) for name in names)
            case ast.ImportFrom(module, names, level):
                assert level == 0, f"line {node.lineno}: write the package's name out"
                for name in names:
                    full = f"{module}.{name.name}"
                    target = full if full in modules else module
                    found.append(Import(target, node.lineno, at_once))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_once = False
            case ast.If(ast.Name("TYPE_CHECKING")):
                for part in node.body:
                    visit(part, False)
                for part in node.orelse:
                    visit(part, at_once)
                return
        for child in ast.iter_child_nodes(node):
            visit(child, at_once)

    visit(ast.parse(source), True)
    return found


def load():
    """{module: its imports} for everything in the two packages."""
    files = {}
    for package in ("mlm", "tasks"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {module: imports(file.read_text(), files) for module, file in files.items()}


IMPORTS = load()


def broken(rule):
    return [
        f"{module} line {each.line}: {each.target}"
        for module, found in IMPORTS.items()
        for each in found
        if rule(module, each)
    ]


def test_the_reader_of_imports():
    source = """
import torch
from mlm import batch, VERSION
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import wandb
else:
    import numpy
class A:
    import json
    def f(self):
        if True:
            from datasets import load_dataset
"""
    found = {each.target: each.at_once for each in imports(source, {"mlm", "mlm.batch"})}
    assert found == {
        **{"torch": True, "mlm.batch": True, "mlm": True, "typing": True},
        **{"wandb": False, "numpy": True, "json": True, "datasets": False},
    }


def test_imports_among_our_packages():
    def rule(module, each):
        package = max((p for p in MAY_IMPORT if under(module, p)), key=len)
        ours = under(each.target, "mlm") or under(each.target, "tasks")
        # `from mlm import __version__` says nothing about where things stand.
        allowed = each.target == "mlm" or under(each.target, package)
        return ours and not allowed and not any(under(each.target, p) for p in MAY_IMPORT[package])

    assert broken(rule) == []


def test_nothing_imports_what_assembles():
    def rule(module, each):
        home = next((p for p in NEVER_IMPORTED if under(each.target, p)), None)
        return home is not None and not under(module, home) and module != "mlm.__main__"

    assert broken(rule) == []


def test_only_the_command_line_names_tasks():
    named = [
        f"{file.relative_to(ROOT)} line {node.lineno}"
        for file in (ROOT / "mlm").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("tasks.")
        and file != ROOT / "mlm" / "cli.py"
    ]
    assert named == []


def test_lightning_stays_in_training():
    def rule(module, each):
        if not any(under(each.target, name) for name in LIGHTNING):
            return False
        lazily = not each.at_once and any(under(module, c) for c in NEVER_IMPORTED)
        return not lazily and not any(under(module, home) for home in LIGHTNING_MODULES)

    assert broken(rule) == []


def test_heavy_and_optional_libraries_are_imported_where_they_are_used():
    def rule(module, each):
        # Who imports the parser's own module, or a command, is about to parse.
        parses = module == "mlm.arguments" or any(under(module, c) for c in NEVER_IMPORTED[1:])
        lazy = any(under(each.target, name) for name in LAZY)
        return each.at_once and lazy and not (parses and each.target == "jsonargparse")

    assert broken(rule) == []


def test_commands_import_nothing_heavy_before_they_are_asked():
    def rule(module, each):
        heavy = ["torch", *LIGHTNING, "mlm.model", "mlm.training", "tasks.module"]
        return (
            module.rpartition(".")[0] in {"mlm.commands", "tasks.commands"}
            and each.at_once
            and any(under(each.target, name) for name in heavy)
        )

    assert broken(rule) == []


@pytest.mark.parametrize("package", ["mlm", "tasks"])
def test_a_package_is_imported_in_an_instant(package):
    code = (
        "import sys, importlib; importlib.import_module(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, package],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"
