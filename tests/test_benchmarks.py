"""The benchmark scripts start, and the one for GPUs runs in miniature anywhere."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p for p in BENCHMARKS.rglob("*.py") if p.name not in ("common.py", "turns.py"))


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


COUNTS = """
import sys, time
begin, wall = time.monotonic(), time.time()
while time.monotonic() - begin < 0.5:
    pass
print(time.time() - wall)
"""


def test_a_halted_programs_clock_stands_still(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from turns import Turn, in_turns

    script = tmp_path / "counts.py"
    script.write_text(COUNTS)
    with ExitStack() as stack:
        programs = [
            stack.enter_context(Turn(tmp_path / f"clock_{n}", [script], tmp_path / f"log_{n}"))
            for n in range(3)
        ]
        in_turns(programs, 0.1)
    # Half a second of its own each, in tenths, between those of the two others.
    for number in range(3):
        assert 0.8 < float((tmp_path / f"log_{number}").read_text()) < 30


def test_a_program_that_fails_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from turns import Turn, in_turns

    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)")
    with (
        Turn(tmp_path / "clock", [script], tmp_path / "log") as program,
        pytest.raises(SystemExit, match=r"ended with 3.*log.*fails\.py"),
    ):
        in_turns([program], 5.0)


@pytest.mark.slow
def test_sentiment_from_nothing(tmp_path: Path) -> None:
    words = [["good", "fine", "lovely"], ["bad", "dull", "awful"]]
    texts = [f"a {words[n % 2][n // 2 % 3]} film, number {n}" for n in range(400)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    table = "text,label\n" + "\n".join(f'"{text}",{n % 2}' for n, text in enumerate(texts))
    (tmp_path / "train.csv").write_text(table)
    small = ["--budget", "2s", "--vocab_size", "150", "--model.size", "tiny"]
    places = [f"--{n}={tmp_path / p}" for n, p in (("work", "w"), ("output", "found.jsonl"))]
    tables = [f"--{n}={tmp_path / 'train.csv'}" for n in ("train", "validation")]
    corpus = ["--corpus", str(tmp_path / "corpus.txt")]
    run(BENCHMARKS / "sst2_from_nothing.py", *corpus, *tables, *places, *small)
    found = json.loads((tmp_path / "found.jsonl").read_text())
    assert 0 < found["minutes"] < 10
    assert 40 <= found["accuracy"] <= 100
    assert found["tokens"] > 0


@pytest.mark.slow
def test_recipes_learn_in_turns(tmp_path: Path) -> None:
    corpus, store = tmp_path / "corpus.txt", tmp_path / "store"
    texts = (
        f"the {n % 7} cats sat on mat {n % 11}, and {n % 5} dogs did not." for n in range(4000)
    )
    corpus.write_text("\n\n".join(texts))
    mlm = [sys.executable, "-m", "mlm", "prepare", "--corpus", corpus, "--output", store]
    subprocess.run([*mlm, "--vocab_size", "200"], check=True, capture_output=True)
    peers = ["transformers modern 1e-3", "transformers bert 1e-3"]
    recipes = ["default", "fourier", "replaced tokens", *peers]
    (tmp_path / "t.csv").write_text("text,label\nthe cats sat,1\nthe dogs did not,0\n")
    words = ["--store", store, "--recipes", *recipes, "--size", "tiny", "--seconds", "3"]
    words += ["--slice", "1", "--seeds", "1", "--work", tmp_path / "work"]
    words += ["--train", tmp_path / "t.csv", "--validation", tmp_path / "t.csv"]
    words += ["--output", tmp_path / "found.jsonl", "--picture", tmp_path / "curves.png"]
    printed = run(BENCHMARKS / "bench_learning.py", *map(str, words))
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["recipe"] for line in lines] == recipes
    for line in lines:
        assert line["steps"] > 0
        assert 0 <= line["accuracy"] <= 100
        if line["recipe"] == "replaced tokens":
            assert line["loss"] is None
            continue
        assert 0 < line["loss"] < 6
        assert line["curve"][-1][1] == pytest.approx(line["loss"], abs=0.05)
        assert line["recipe"] in printed
    assert (tmp_path / "curves.png").stat().st_size > 5000


TWO = """
import sys, pathlib
from turns import Turn, in_turns
place = pathlib.Path(sys.argv[1])
with Turn(place / "a", [place / "waits.py"], place / "log_a") as a:
    with Turn(place / "b", [place / "waits.py"], place / "log_b") as b:
        print(a.process.pid, b.process.pid, flush=True)
        in_turns([a, b], 0.1)
"""


def test_who_waits_for_a_turn_ends_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import time; time.sleep(600)")
    command = [sys.executable, "-c", TWO, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        time.sleep(0.5)
        parent.terminate()
    assert len(children) == 2
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
