"""A model card from what a run left: only what was measured stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mlm.checkpoint import ModelFolder
from mlm.errors import UserError
from mlm.training.metrics_csv import read_metrics

# Of a run's settings, those that make a model what it is.
_RECIPE = ("seed", "budget", "task", "data", "loss", "optimizer")
_CURVE_ROWS = 12


def find_run(model: Path) -> Path | None:
    """The run directory that ``model`` is in: ``RUN/model`` or ``RUN/checkpoints/STEP/model``."""
    for place in (model.resolve().parent, *model.resolve().parents[2:3]):
        if (place / "config.yaml").is_file() and (place / "metrics.csv").is_file():
            return place
    return None


def model_card(folder: ModelFolder, licence: str | None, name: str, shown: Path) -> str:
    """Markdown with the Hub's front matter.

    Args:
        folder: the model.
        licence: the Hub's word for it, such as `mit`; None leaves the field out.
        name: the card's title.
        shown: the folder that the card is for: the model's, or what was made of it.
    """
    own = shown / "README.md"
    front, body = _split(own if own.is_file() else folder.directory / "README.md")
    if not (shown / "model.safetensors").is_file():
        front.pop("library_name", None)
    if licence is not None:
        front["license"] = licence
    parts = [f"# {name}", body]
    run = find_run(folder.directory)
    if run is not None:
        settings = _plain_yaml(
            (run / "config.yaml").read_text(encoding="utf-8"), run / "config.yaml"
        )
        parts += [_data(settings), _recipe(settings), _curve(run, folder.info.get("steps"))]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _split(readme: Path) -> tuple[dict[str, Any], str]:
    """A card's front matter and the rest."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if not text.startswith("---\n"):
        return {}, text.strip()
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    return _plain_yaml(front, readme), body.strip()


def _plain_yaml(text: str, path: Path) -> dict[str, Any]:
    """Named plain values; a `UserError` for anything else, such as a tag that names a class."""
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not plain YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: does not hold named values")
    return values


def _data(settings: dict[str, Any]) -> str:
    """What it was trained on: names of files and folders alone, never where they lie."""
    rows = []
    for key in ("store", "train", "validation"):
        if value := settings.get(key):
            rows.append(f"- {key}: `{Path(str(value)).name}`")
    store = settings.get("store")
    if store and (Path(store) / "manifest.json").is_file():
        rows += _corpus(Path(store))
    return "\n".join(["## Data", "", *rows]) if rows else ""


def _corpus(store: Path) -> list[str]:
    from mlm.data.store import read_manifest

    manifest = read_manifest(store) or {}
    report = manifest.get("report", {})
    names = ", ".join(f"`{Path(entry['name']).name}`" for entry in manifest.get("sources", []))
    return [
        f"- corpus: {names}",
        f"- {report['train_tokens']:,} tokens to train on in {report['train_documents']:,} "
        f"documents, {report['validation_tokens']:,} held out",
    ]


def _recipe(settings: dict[str, Any]) -> str:
    kept = {key: settings[key] for key in _RECIPE if settings.get(key) is not None}
    text = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None)
    return f"## Recipe\n\n```yaml\n{text}```"


def _curve(run: Path, until: int | None) -> str:
    """Up to a dozen validations no later than step ``until``, the last one among them."""
    rows = read_metrics(run / "metrics.csv")
    names = [name for name in rows if name.startswith("val/")]
    steps = [
        i
        for i, loss in enumerate(rows.get("val/loss", []))
        if loss is not None and (until is None or (rows["step"][i] or 0) <= until)
    ]
    if not steps:
        return ""
    stride = -(-len(steps) // _CURVE_ROWS)
    chosen = steps[::-1][::stride][::-1]
    lines = ["| step | " + " | ".join(n.removeprefix("val/") for n in names) + " |"]
    lines.append("| --- " * (len(names) + 1) + "|")
    for i in chosen:
        cells = ["" if (v := rows[name][i]) is None else f"{v:.4f}" for name in names]
        lines.append(f"| {rows['step'][i]:,.0f} | " + " | ".join(cells) + " |")
    return "## Validation\n\n" + "\n".join(lines)
