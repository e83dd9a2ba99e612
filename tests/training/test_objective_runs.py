"""Runs of each objective: they learn, go on where they were, and leave what fine-tuning takes."""

import subprocess
import sys

import pytest
import torch
from test_pretraining import losses

from mlm.checkpoint import build_encoder, load_masked_lm, read_folder
from mlm.data.prepare import PrepareOptions, prepare
from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.objectives.table import OBJECTIVES
from mlm.training.batches import TrainingBatches
from mlm.training.data_options import DataOptions, Share
from mlm.training.metrics_csv import read_metrics
from mlm.training.pretraining import pretrain

OTHERS = [name for name in OBJECTIVES if name != "masked_lm"]


def chosen(name: str, causal_share: float) -> str:
    """The words for an objective, with a share of causal steps where it has them."""
    share = f" --objective.causal_share {causal_share}" if name == "masked_and_causal" else ""
    return f"--objective.name {name}{share}"


@pytest.mark.parametrize("family", ["bert", "modern"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_learns_and_leaves_a_model(name, family, pretrain_settings, tmp_path):
    words = f"{chosen(name, 0.25)} --model.family {family} --budget 40steps --optimizer.lr 0.01"
    words += " --model.intermediate_size 64"
    found = pretrain(pretrain_settings(words))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert rows["val/loss"][-1] == found["val/loss"] < 4.5  # of 120 tokens, log 120 is 4.8
    folder = read_folder(tmp_path / "run" / "model")
    if OBJECTIVES[name].head == "encoder":
        assert folder.head == "encoder"
        assert all(n.startswith("encoder.") for n in folder.state)
    else:
        load_masked_lm(tmp_path / "run" / "model")
    build_encoder(folder)
    metric = OBJECTIVES[name].metric
    if metric:
        assert 0.3 < found[metric] <= 1
    assert f"of {name.replace('_', ' ')}" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize("name", OTHERS)
def test_resume_is_bit_identical(name, pretrain_settings, tmp_path):
    common = f"{chosen(name, 0.5)} --checkpoint.every_n_steps 3"
    common += " --trainer.accumulate_grad_batches 2 --trainer.val_check_interval 2 --budget 6steps"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pretrain(pretrain_settings(f"{common} --run_dir {whole}"))
    pretrain(pretrain_settings(f"{common} --run_dir {halves}"))
    (halves / "checkpoints" / "step_00000006").rename(tmp_path / "late")
    pretrain(pretrain_settings(f"{common} --run_dir {halves} --resume auto"))
    assert losses(halves) == losses(whole)
    a, b = (read_folder(run / "model").state for run in (whole, halves))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_checkpoint_of_another_objective_is_refused(pretrain_settings, tmp_path):
    common = "--checkpoint.every_n_steps 2 --budget 4steps"
    pretrain(pretrain_settings(f"{common} --objective.name sentence_order"))
    last = tmp_path / "run" / "checkpoints" / "step_00000002"
    with pytest.raises(UserError, match=r"objective\.name: the checkpoint is not of masked_lm"):
        pretrain(pretrain_settings(f"{common} --run_dir {tmp_path / 'b'} --resume {last}"))


@pytest.mark.parametrize("name", ["sentence_order", "masked_and_causal"])
def test_accumulation_changes_no_loss(name, pretrain_settings, tmp_path):
    curves = []
    for accumulation in (1, 4):
        run = tmp_path / str(accumulation)
        words = f"{chosen(name, 0.5)} --trainer.accumulate_grad_batches {accumulation}"
        pretrain(pretrain_settings(f"{words} --optimizer.name adamw --run_dir {run}"))
        curves.append(losses(run))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_pairs_do_not_depend_on_ranks(store):
    opened, options = TokenStore.open(store), DataOptions(batch_size=8, sequence_length=32)
    whole = TrainingBatches(opened, options, Share(), 7, negatives="another")[2]
    halves = [
        TrainingBatches(opened, options, Share(rank, 2), 7, negatives="another")[2]
        for rank in range(2)
    ]
    for name in ("input_ids", "labels", "pair_labels", "token_type_ids"):
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(joined, getattr(whole, name))


def test_order_is_learned(pretrain_settings, tmp_path):
    """The corpus' sentences are alike, so order cannot be told; numbered ones can."""
    corpus = tmp_path / "numbered.txt"
    ordinals = ["one", "two", "three", "four", "five", "six"]
    texts = [" ".join(f"{n} comes ." for n in ordinals[i % 3 :] * (1 + i // 3)) for i in range(60)]
    corpus.write_text("\n\n".join(texts))
    prepare(PrepareOptions(corpus=[str(corpus)], output=str(tmp_path / "s"), vocab_size=60))
    words = f"--store {tmp_path / 's'} --objective.name sentence_order --budget 400steps"
    found = pretrain(pretrain_settings(f"{words} --optimizer.lr 0.01 --data.sequence_length 24"))
    assert found["val/pair_accuracy"] > 0.8  # 12 of 14 pairs; by chance 1 time of 150


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--objective.name electra", r"objective\.name: 'electra'"),
        ("--objective.weight 2", "masked_lm has no second loss"),
        ("--objective.name sentence_order --objective.weight -1", r"objective\.weight: -1"),
        ("--objective.name replaced_tokens --objective.generator_depth 0", "generator_depth: 0"),
        ("--objective.name masked_and_causal --objective.causal_share 1.5", r"causal_share: 1\.5"),
        ("--objective.causal_share 0.1", "causal_share: masked_lm has none"),
        ("--objective.name masked_and_causal --model.attention [lstm]", "needs attention"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(pretrain_settings, tmp_path, words, named):
    with pytest.raises(UserError, match=named) as caught:
        pretrain(pretrain_settings(words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        (
            "sentence_order",
            "\n\n".join(f"sentence {n} alone ." for n in range(50)),
            "documents of two sentences",
        ),
        (
            "sentence_order",
            "\n\n".join([*(f"sentence {n} alone ." for n in range(500)), "one . two . three ."]),
            "documents of two sentences",
        ),
        ("next_sentence", "here it is . there it was . " * 99, "needs two documents|no document"),
    ],
)
def test_a_store_without_pairs_is_refused(name, text, named, pretrain_settings, tmp_path):
    (tmp_path / "c.txt").write_text(text)
    try:
        prepare(PrepareOptions(corpus=[str(tmp_path / "c.txt")], output=str(tmp_path / "s")))
        with pytest.raises(UserError, match=named):
            pretrain(pretrain_settings(f"--store {tmp_path / 's'} --objective.name {name}"))
    except UserError as error:
        pytest.fail(f"refused by prepare: {error}")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_told_where_tokens_stand_says_so(pretrain_settings, capsys):
    pretrain(pretrain_settings("--budget 1step --model.family modern --model.attention [fourier]"))
    assert "warning: rope tells attention where tokens stand" in capsys.readouterr().err


def test_a_validation_without_pairs_says_nothing_of_them(pretrain_settings, tmp_path):
    words = "--objective.name sentence_order --budget 2steps --trainer.limit_val_batches 1"
    found = pretrain(pretrain_settings(words))
    assert "val/loss" in found
    assert "val/pair_accuracy" not in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentence_order", "replaced_tokens"])
def test_two_processes_change_little(name, store, tmp_path):
    """Detection draws its own guesses on each rank, so its losses are alike and no more."""
    one, two = tmp_path / "one", tmp_path / "two"
    words = (
        "--model.size tiny --data.batch_size 8 --data.sequence_length 32 --optimizer.name adamw "
        "--trainer.accelerator cpu --trainer.precision fp32 --trainer.log_every_n_steps 1 "
        f"--logging.wandb off --budget 10steps --store {store} --objective.name {name}"
    )
    for run, more in ((one, ""), (two, "--trainer.devices 2 --trainer.strategy ddp")):
        command = f"-m mlm pretrain {words} {more} --run_dir {run}"
        subprocess.run([sys.executable, *command.split()], check=True, timeout=300)
    near = {"abs": 1e-4} if name == "sentence_order" else {"rel": 0.1}
    assert losses(two) == pytest.approx(losses(one), **near)
