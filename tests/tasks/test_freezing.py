"""Frozen parts stay as they are to the last bit, on one process and on two."""

import math
import subprocess
import sys

import pytest
import torch
from test_finetuning import losses, run, validations, words
from toy import toy_config

from mlm.checkpoint import read_folder
from mlm.errors import UserError
from mlm.model.encoder import Encoder
from mlm.training.metrics_csv import read_metrics
from tasks.freezing import freeze_parts

# What stays of a model of two layers; `none` is a start of no name.
STAYS = {
    "none": (),
    "embeddings": ("encoder.embeddings.",),
    "0": ("encoder.embeddings.",),
    "1": ("encoder.embeddings.", "encoder.layers.0."),
    "encoder": ("encoder.",),
}


@pytest.mark.parametrize("freeze", STAYS)
def test_frozen_weights_have_no_gradient_and_no_dropout(freeze, tokenizer):
    config = toy_config("modern", tokenizer, hidden_dropout=0.1)
    encoder = Encoder(config)
    freeze_parts(encoder, int(freeze) if freeze.isdigit() else freeze)
    for name, parameter in encoder.named_parameters():
        frozen = f"encoder.{name}".startswith(STAYS[freeze] or "-")
        assert parameter.requires_grad != frozen, name
    assert encoder.layers[0].dropout.training == (freeze in ("none", "embeddings", "0"))
    assert encoder.layers[1].dropout.training == (freeze != "encoder")


@pytest.mark.parametrize("freeze", STAYS)
def test_frozen_weights_are_the_same_after_a_run(freeze, toy, pretrained, tmp_path):
    more = (
        f"--model.freeze {freeze} --model.hidden_dropout 0.1 --trainer.max_steps 4 "
        "--trainer.val_check_interval 2 --optimizer.name muon --optimizer.layer_decay 0.9"
    )
    run_dir = tmp_path / "run"
    run(toy, pretrained["modern"], run_dir, more)
    before, after = (read_folder(f).state for f in (pretrained["modern"], run_dir / "model"))
    stays = STAYS[freeze] or "-"
    for name in (name for name in after if name.startswith("encoder.")):
        assert torch.equal(before[name], after[name]) == name.startswith(stays), name
    # Nor does the optimizer know them.
    state = torch.load(run_dir / "checkpoints" / "step_00000004" / "state.pt", weights_only=True)
    kept = state["optimizer_states"][0]["state"]
    assert len(kept) == sum(not name.startswith(stays) for name in after)
    known = [mfu for mfu in read_metrics(run_dir / "metrics.csv")["mfu"] if mfu is not None]
    assert all(math.isnan(mfu) == (freeze != "none") for mfu in known)


def test_dropout_in_a_frozen_encoder_stays_off_over_validations(toy, pretrained, tmp_path):
    """Without dropout anywhere above, two micro-batches a step are as one."""
    for accumulation in (1, 2):
        more = (
            "--model.freeze encoder --model.hidden_dropout 0.3 --model.dropout 0 "
            f"--trainer.max_steps 6 --trainer.val_check_interval 2 "
            f"--trainer.accumulate_grad_batches {accumulation}"
        )
        run(toy, pretrained["bert"], tmp_path / str(accumulation), more)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=1e-5)


@pytest.mark.parametrize(
    ("freeze", "named"),
    [
        ("3", r"model\.freeze: 3 must lie between 0 and the model's 2 layers"),
        ("-1", r"model\.freeze: -1 must lie between"),
        ("embedings", "--model.freeze: expected one of none, embeddings, encoder or an integer"),
    ],
)
def test_mistakes_are_one_line(toy, pretrained, tmp_path, freeze, named):
    with pytest.raises(UserError, match=named):
        run(toy, pretrained["bert"], tmp_path / "run", f"--model.freeze={freeze}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_with_frozen_layers_and_two_passes(toy, pretrained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    common = (
        "--model.freeze 1 --optimizer.layer_decay 0.9 --model.layers 2 --model.pooling attention "
        "--loss.class_weights balanced --loss.r_drop 1 --model.dropout 1e-9 "
        "--trainer.max_steps 6 --trainer.val_check_interval 3"
    )
    for run_dir, more in ((one, ""), (two, "--trainer.devices 2 --trainer.strategy ddp")):
        command = words(toy, pretrained["modern"], run_dir, f"{common} {more}")
        subprocess.run(
            [sys.executable, "-m", "mlm", "finetune", *command],
            check=True, timeout=300, capture_output=True, text=True,
        )  # fmt: skip
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert validations(two, "loss") == pytest.approx(validations(one, "loss"), abs=1e-4)
