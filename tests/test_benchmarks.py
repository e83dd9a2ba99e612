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


@pytest.mark.slow
def test_the_gpu_benchmark_in_miniature(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    run(BENCHMARKS / "bench_gpu.py", "--try", "--steps", "2", "--output", str(output))
    paths, *cases = json.loads(output.read_text())["results"]
    assert paths["sdpa, window 64"] > 0
    assert len(cases) == 2
    for case in cases:
        for side in ("ours", "transformers"):
            assert case[side]["tokens_per_second"] > 0
