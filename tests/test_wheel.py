"""The wheel holds what an installed `mlm` needs, and works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_it_holds_both_packages_and_every_config(wheel):
    names = set(wheel.namelist())
    assert {"mlm/py.typed", "tasks/py.typed", "mlm/cli.py", "tasks/__init__.py"} <= names
    shipped = {f"mlm/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert shipped
    assert shipped <= names
    ours = [p.relative_to(ROOT) for d in ("mlm", "tasks") for p in (ROOT / d).rglob("*.*")]
    assert {str(p) for p in ours if p.suffix != ".pyc"} <= names
    tops = {name.split("/")[0].partition("-")[0] for name in names}
    assert tops == {"mlm", "tasks"}, "tests, benchmarks and notebooks stay at home"


def test_its_metadata(wheel):
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()
    assert "\nLicense-Expression: MIT\n" in text
    assert "\nRequires-Python: >=3.11\n" in text
    entry_points = wheel.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert entry_points.split() == ["[console_scripts]", "mlm", "=", "mlm.cli:main"]


def test_it_finds_its_configs_when_installed(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = (
        "import mlm; from mlm.config_files import find_config;"
        "print(mlm.__file__); print(find_config('mini_cpu', 'pretrain'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    package = tmp_path / "site" / "mlm"
    assert done.stdout.split() == [
        str(package / "__init__.py"),
        str(package / "configs" / "pretrain" / "mini_cpu.yaml"),
    ]
