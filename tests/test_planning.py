"""Plans: a law that fits what was measured, sizes in order, and a file that trains."""

import json
import time

import pytest
import torch

from mlm.cli import main
from mlm.data.prepare import PrepareOptions, prepare
from mlm.model.config import preset
from mlm.planning import MEASURED, Law, Measured, fit, largest_error, plan, plans
from mlm.training.flops import flops_per_token, layer_weights


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    texts = (f"the {n % 7} cats sat on mat {n % 11}, and {n % 5} dogs did not." for n in range(400))
    (folder / "corpus.txt").write_text("\n\n".join(texts))
    corpus = [str(folder / "corpus.txt")]
    prepare(PrepareOptions(corpus=corpus, output=str(folder / "store"), vocab_size=120))
    return folder / "store"


def test_the_law_is_found_where_there_is_one():
    true = Law(1.2, 100.0, 150.0)
    runs = [Measured(n, d, true.loss(n, d), "") for n in (1e6, 1e7, 1e8) for d in (1e7, 1e8, 1e9)]
    found = fit(runs)
    assert found.floor == pytest.approx(1.2, rel=1e-6)
    assert found.of_weights == pytest.approx(100, rel=1e-6)
    assert largest_error(found, runs) < 1e-9


def test_the_law_is_near_what_was_measured_and_falls_with_both():
    law = fit()
    assert largest_error(law) < 0.1
    assert min(law.floor, law.of_weights, law.of_tokens) > 0
    assert law.loss(1e7, 1e8) < min(law.loss(1e6, 1e8), law.loss(1e7, 1e7))
    assert MEASURED[0].weights == pytest.approx(layer_weights(preset("modern", "mini")), rel=0.01)


def test_the_weights_of_layers():
    config = preset("bert", "base")
    assert layer_weights(config) == 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert flops_per_token(config.replace(vocab_size=1), [1], 0) == pytest.approx(
        6 * layer_weights(config), rel=1e-3
    )


def test_more_time_is_worth_a_larger_model():
    speeds = {"tiny": 40_000, "mini": 12_000, "small": 5_000, "medium": 2_500, "base": 800}

    def best(seconds):
        made = [plan(s, preset("modern", s), v, seconds, 128) for s, v in speeds.items()]
        return min(made, key=lambda one: one.loss)

    sizes = [best(seconds).size for seconds in (60, 1800, 36_000, 864_000)]
    order = [list(speeds).index(size) for size in sizes]
    assert order == sorted(order)
    assert order[0] < order[-1]
    half_an_hour = best(1800)
    assert half_an_hour.steps * half_an_hour.batch_size * 128 == pytest.approx(
        half_an_hour.tokens, rel=0.01
    )


def test_rows_grow_with_the_root_of_the_tokens_and_leave_enough_steps():
    made = [plan("mini", preset("modern", "mini"), d / 1800, 1800, 128) for d in (1e7, 1.6e8, 6e5)]
    assert [one.batch_size for one in made] == [64, 256, 16]
    assert made[-1].steps >= 200


def test_sizes_are_tried_until_one_is_worse(store):
    from mlm.data.store import TokenStore

    found = list(plans(TokenStore.open(store), 120.0, 0.3, "cpu", False, 32))
    losses = [one.loss for one in found]
    assert found[0].size == "tiny"
    assert losses[:-1] == sorted(losses[:-1], reverse=True)
    assert all(one.tokens_per_second > 0 for one in found)


def test_a_plan_is_a_config_that_trains(store, tmp_path, capsys):
    file, words = tmp_path / "plan.yaml", ["--store", str(store), "--accelerator", "cpu"]
    assert main(["plan", *words, "--budget", "10min", "--probe", "0.3", "--output", str(file)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert f"loss {found['loss']:.2f}" in err
    assert "fitted to" in err
    assert file.read_text().startswith("# By `mlm plan`")
    quiet = ["--logging.wandb", "off", "--trainer.accelerator", "cpu", "--budget", "2steps"]
    small = ["--data.sequence_length", "32", "--data.batch_size", "4"]
    place = ["--store", str(store), "--run_dir", str(tmp_path / "run")]
    assert main(["pretrain", "--config", str(file), *place, *quiet, *small]) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["hidden_size"] == preset("modern", found["size"]).hidden_size


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--budget", "2000steps"], "is no time"),
        (["--budget", "1s"], "the least; give more"),
        (["--budget", "1h", "--probe", "0"], "--probe: 0"),
        (["--budget", "soon"], "--budget 'soon'"),
        (["--budget", "1h", "--accelerator", "tpu"], "--accelerator: 'tpu' is not known"),
    ],
)
def test_mistakes_are_named(store, tmp_path, words, named, capsys):
    place = ["--store", str(store), "--output", str(tmp_path / "plan.yaml")]
    if "--probe" not in words:
        words = [*words, "--probe", "0.3"]
    assert main(["plan", *place, *words]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "plan.yaml").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_minute(store, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for place, named in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.yaml", "no folder")):
        words = ["--store", str(store), "--budget", "1h", "--output", str(place)]
        began = time.monotonic()
        assert main(["plan", *words]) == 2
        assert time.monotonic() - began < 30  # of a minute
        assert named in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_not_there_or_too_small_is_named(store, monkeypatch, capsys):
    words = ["plan", "--store", str(store), "--budget", "1h", "--probe", "0.3"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*words, "--accelerator", "gpu"]) == 2
    assert "--accelerator: gpu is not here" in capsys.readouterr().err

    # As CUDA and a CPU's allocator say it.
    for error in (
        torch.OutOfMemoryError(),
        RuntimeError("you tried to allocate: not enough memory"),
    ):

        def nothing_fits(*_, error=error):
            raise error

        monkeypatch.setattr("mlm.planning.measured_speed", nothing_fits)
        assert main(words) == 2
        assert "not even the smallest size fits" in capsys.readouterr().err
