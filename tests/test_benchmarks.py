"""The benchmark scripts start, and the one for GPUs runs in miniature anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p for p in BENCHMARKS.rglob("*.py") if p.name != "common.py")


def run(script: Path, *words: str) -> str:
    command = [sys.executable, str(script), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_says_how_it_is_called(script: Path) -> None:
    assert "--output" in run(script, "--help")


# Images for GPUs often lack these.
MISSING = ("datasets", "wandb", "jsonargparse", "tokenizers", "transformers", "pytorch_lightning")
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({MISSING}))
sys.path.insert(0, str({str(BENCHMARKS)!r}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True], ids=["with all packages", "with torch alone"])
def test_the_gpu_benchmark_in_miniature(tmp_path: Path, bare: bool) -> None:
    output, script = tmp_path / "gpu.json", BENCHMARKS / "bench_gpu.py"
    words = [str(script), "--try", "--steps", "2", "--output", str(output)]
    start = [sys.executable, *(["-c", WITHOUT] if bare else [])]
    subprocess.run([*start, *words], check=True, capture_output=True)
    paths, losses, optimizers, *cases = json.loads(output.read_text())["results"]
    assert paths["sdpa, window 64"] > 0
    assert losses["in pieces"] > 0
    assert losses["plain"] > 0
    assert optimizers["muon"] > 0
    assert len(cases) == 3
    for number, case in enumerate(cases):
        sides = ["ours", *(["transformers"] if number < 2 and not bare else [])]
        for side in sides:
            assert case[side]["tokens_per_second"] > 0
        assert ("transformers" in case) == ("transformers" in sides)
