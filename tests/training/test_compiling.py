"""Compiled training: one graph for every batch of a run, and the same losses as without."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from mlm.batch import ragged
from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.batches import TrainingBatches
from mlm.training.budget import Budget, Spent
from mlm.training.compiling import check_compile, compiled
from mlm.training.data_options import DataOptions, Share
from mlm.training.metrics_csv import read_metrics
from mlm.training.module import PretrainingModule
from mlm.training.optimizers import OptimizerOptions
from mlm.training.pretraining import pretrain

STEPS, LENGTH, ROWS = 40, 48, 24


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that have been compiled so far, by a backend that only keeps them."""
    torch.compiler.reset()
    counters.clear()
    found = []

    def keep(graph, inputs, **options):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(
        "mlm.training.compiling.torch.compile", partial(torch.compile, backend=keep)
    )
    yield found
    torch.compiler.reset()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["bert", "modern"])
def test_a_stream_of_ragged_batches_is_one_graph(store, graphs, family, recompute):
    opened = TokenStore.open(store)
    options = DataOptions(sequence_length=LENGTH, batch_size=ROWS)
    batches = TrainingBatches(opened, options, Share(), seed=0, still=True)
    torch.manual_seed(0)
    config = preset(family, "tiny", vocab_size=opened.vocab_size, max_position_embeddings=LENGTH)
    if family == "modern":
        config = config.replace(local_attention=12)
    models = [MaskedLanguageModel(config).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[0].encoder.recompute = recompute
    made = [
        PretrainingModule(model, options, OptimizerOptions(), Budget("steps", STEPS), compile=how)
        for model, how in zip(models, (True, False), strict=True)
    ]
    fused, plain = made
    sequences, masked = set(), set()
    for step in range(STEPS):
        batch = batches[step]
        for module in made:
            module.spent = Spent(step)
        with torch.autocast("cpu", torch.bfloat16):
            found = fused.sums(batch)
        found.loss.backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = plain.sums(batch)
        assert found.targets == expected.targets
        assert float(found.loss.detach() / expected.loss) == pytest.approx(1, abs=0.01)
        sequences.add(batch.num_sequences)
        masked.add(int(found.targets))
    assert len(sequences) > 2  # the batches do differ
    assert max(masked) > 1.5 * min(masked)
    assert len(graphs) == 1
    assert not counters["graph_break"]


def test_what_a_cuda_graph_cannot_do_is_refused(pretrain_settings):
    check_compile(True, 4)
    check_compile("reduce-overhead", 1)
    words = "--compile reduce-overhead --trainer.accumulate_grad_batches 2"
    with pytest.raises(UserError, match="reduce-overhead records CUDA graphs"):
        pretrain(pretrain_settings(words))


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("false", False), ("reduce-overhead", "reduce-overhead")]
)
def test_the_option_takes_a_truth_or_a_mode(pretrain_settings, word, value):
    assert pretrain_settings(f"--compile {word}")["compile"] == value


def test_another_mode_is_refused(pretrain_settings):
    with pytest.raises(UserError, match="compile"):
        pretrain_settings("--compile fastest")


def losses_of(run):
    return read_metrics(run / "metrics.csv")["train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modern"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(pretrain_settings, tmp_path, family):
    words = f"--model.family {family} --budget 6steps --optimizer.name adamw"
    for name, how in (("plain", "false"), ("compiled", "true")):
        pretrain(pretrain_settings(f"{words} --compile {how} --run_dir {tmp_path / name}"))
    assert losses_of(tmp_path / "compiled") == pytest.approx(
        losses_of(tmp_path / "plain"), abs=1e-4
    )


@pytest.mark.parametrize("how", [True, "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_a_mode_is_passed_on_whatever_the_processor_needs(how, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "mlm.training.compiling.torch.compile", lambda function, options: asked.update(options)
    )
    compiled(abs, how)
    asked.pop("cpp.simdlen", None)
    assert asked == ({} if how is True else torch._inductor.list_mode_options(how))


@pytest.mark.slow
def test_compiled_gradients_in_bf16_are_those_of_a_plain_run():
    torch.compiler.reset()
    torch.manual_seed(0)
    config = preset("modern", "tiny", vocab_size=2000, max_position_embeddings=128)
    model = MaskedLanguageModel(config).train()
    batch = replace(
        ragged(list(torch.randint(5, 2000, (8, 128)).numpy())),
        masked_positions=torch.arange(0, 1024, 4),
        labels=torch.randint(5, 2000, (256,)),
    )

    def loss():
        return masked_lm.loss(model, batch)[0]

    found = []
    for function in (loss, compiled(loss, True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            total = function()
        total.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    plain, by_compiler = found
    for name, gradient in plain.items():
        distance = (by_compiler[name] - gradient).norm() / gradient.norm()
        assert distance < 0.05, name  # which nan is not


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["true", "reduce-overhead"])
@pytest.mark.parametrize("family", ["bert", "modern"])
def test_a_compiled_run_on_cuda_has_the_losses_of_a_plain_one(
    pretrain_settings, tmp_path, family, how
):
    words = f"--model.family {family} --budget 20steps --trainer.accelerator cuda"
    words += " --trainer.precision bf16"
    for name, kind in (("plain", "false"), ("compiled", how)):
        pretrain(pretrain_settings(f"{words} --compile {kind} --run_dir {tmp_path / name}"))
    assert losses_of(tmp_path / "compiled") == pytest.approx(
        losses_of(tmp_path / "plain"), abs=0.02
    )


def test_no_schedule_follows_the_time_of_compiling(
    pretrain_settings, tmp_path, graphs, monkeypatch
):
    """Five of ten seconds for the first step, then a tenth for each."""
    monkeypatch.setattr("mlm.training.pretraining.start", lambda *_: 0.0)
    monkeypatch.setattr(
        "mlm.training.clock.Clock.read", lambda _, step: 4.9 + 0.1 * step if step else 0.0
    )
    pretrain(pretrain_settings("--compile true --budget 10s --optimizer.lr 0.001"))
    told = read_metrics(tmp_path / "run" / "metrics.csv")["learning_rate"]
    rates = [rate for rate in told if rate is not None]
    assert rates[:2] == [0.0, 0.0]
    # A tenth of five seconds is a fiftieth of the rest; the warmup is a twentieth.
    assert rates[2] == pytest.approx(0.001 * (0.1 + 0.025) / 5 / 0.05)
    assert max(rates) == pytest.approx(0.001, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["false", "true"])
def test_resume_on_cuda_is_deterministic(pretrain_settings, tmp_path, how):
    words = f"--compile {how} --trainer.accelerator cuda --trainer.precision bf16 --budget 8steps"
    words += " --checkpoint.every_n_steps 4 --trainer.deterministic true"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run in (whole, halves):
        pretrain(pretrain_settings(f"{words} --run_dir {run}"))
    (halves / "checkpoints" / "step_00000008").rename(tmp_path / "late")
    pretrain(pretrain_settings(f"{words} --run_dir {halves} --resume auto"))
    assert losses_of(halves) == losses_of(whole)
