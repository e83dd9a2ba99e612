"""A grid of settings: what is trained, what is taken of it, and that it goes on."""

import json
import shutil

import pytest
from test_finetuning import options, run, same_weights

from mlm.errors import UserError
from tasks.search import GRIDS, grid_jobs

STEPS = "--trainer.max_steps 6 --search small"


def names(run_dir):
    return sorted(path.name for path in (run_dir / "search").iterdir())


def test_the_grid_is_around_what_is_given(toy, pretrained, tmp_path):
    more = "--search small --data.batch_size 32 --optimizer.lr 1e-4"
    settings = options(toy, pretrained["bert"], tmp_path / "run", more)
    jobs = grid_jobs(settings)
    found = {(job["optimizer"]["lr"], job["data"]["batch_size"]) for job in jobs}
    assert found == {(lr, size) for lr in (3.33e-5, 1e-4, 3e-4) for size in (16, 32)}
    assert len({job["run_dir"] for job in jobs}) == len(jobs) == 6
    for job in jobs:  # and nothing else
        same = {**job, "optimizer": None, "data": None, "run_dir": None}
        assert same == {**settings, "optimizer": None, "data": None, "run_dir": None}
    one = options(toy, pretrained["bert"], tmp_path / "run", f"{more} --data.batch_size 1")
    assert len(grid_jobs(one)) == 3  # half of 1 is 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_best_by_validation_is_taken(workers, toy, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    more = f"{STEPS} --parallel_seeds {workers} --report true"
    found = run(toy, pretrained["modern"], run_dir, more)
    assert len(names(run_dir)) == 6
    results = [json.loads(p.read_text()) for p in run_dir.glob("search/*/results.json")]
    assert found["accuracy"] == max(result["accuracy"] for result in results)
    kept = json.loads((run_dir / "results.json").read_text())
    (best,) = [line for line in kept["search"] if line["best"]]
    assert best["accuracy"] == found["accuracy"]
    assert set(best) == {*GRIDS["small"], "accuracy", "best"}
    folder = run_dir / "search" / f"lr_{best['optimizer.lr']}_batch_size_{best['data.batch_size']}"
    assert same_weights(run_dir / "model", folder / "model")
    assert (run_dir / "report" / "report.md").is_file()
    assert found["model"] == str(run_dir / "model")
    lines = capsys.readouterr().err
    assert "the best of 6 on these rows is flattered by the choice" in lines


def test_seeds_follow_with_what_was_found(toy, pretrained, tmp_path):
    run_dir = tmp_path / "run"
    found = run(toy, pretrained["bert"], run_dir, f"{STEPS} --seeds 2")
    assert found["seeds"] == [0, 1]
    kept = json.loads((run_dir / "results.json").read_text())
    (best,) = [line for line in kept["search"] if line["best"]]
    assert found["accuracy"]["values"][0] == best["accuracy"]
    assert [path.name for path in run_dir.glob("seed_*")] == ["seed_1"]
    config = (run_dir / "seed_1" / "config.yaml").read_text()
    assert f"batch_size: {best['data.batch_size']}\n" in config


def test_a_search_goes_on(toy, pretrained, tmp_path):
    run_dir = tmp_path / "run"
    whole = run(toy, pretrained["bert"], run_dir, STEPS)
    with pytest.raises(UserError, match="not empty"):
        run(toy, pretrained["bert"], run_dir, STEPS)
    shutil.rmtree(run_dir / "search" / names(run_dir)[-1])
    before = {p: p.stat().st_mtime_ns for p in run_dir.glob("search/*/results.json")}
    assert run(toy, pretrained["bert"], run_dir, f"{STEPS} --resume auto") == whole
    assert len(before) == 5
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--resume {run}/checkpoints/step_1", "with several --seeds or a --search only auto"),
        ("--search small --train nothing.csv", "nothing.csv"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything(more, said, toy, pretrained, tmp_path):
    with pytest.raises(UserError, match=said):
        run(toy, pretrained["bert"], tmp_path / "run", f"{STEPS} {more.format(run=tmp_path)}")
    assert not (tmp_path / "run").exists()
