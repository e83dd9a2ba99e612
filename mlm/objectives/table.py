"""The objectives by name: what each trains, on what, and what of it is kept.

All of them predict masked tokens; what else one does is its *second loss*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mlm.batch import Batch
from mlm.data.keys import mix
from mlm.errors import UserError, look_up
from mlm.model.config import WINDOWED, EncoderConfig
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_and_causal, masked_lm, pair_order, replaced_tokens
from mlm.objectives.pair_order import PairedMaskedLM
from mlm.objectives.replaced_tokens import ReplacedTokenDetector
from mlm.objectives.sums import Loss, Score, Second

_CAUSAL = 0x63617573
# Settings that are shares, and which objective has them.
_SHARES = {"generator_depth": "replaced_tokens", "causal_share": "masked_and_causal"}


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the encoder is trained to do."""

    name: str = "masked_lm"
    """`masked_lm`; with it `sentence_order` or `next_sentence`, on pairs of texts;
    `masked_and_causal`, steps that see only what stands before; or `replaced_tokens`, whose encoder
    detects what a small generator filled in (ELECTRA)."""
    weight: float | None = None
    """Of the second loss, a mean of its own, beside that of the masked tokens. By default 1 for
    pairs and 50 for `replaced_tokens`."""
    generator_depth: float | None = None
    """The generator's layers, as a share of the encoder's; for `replaced_tokens`, null is 0.5."""
    causal_share: float | None = None
    """The share of causal steps; for `masked_and_causal`, where null is 1/16."""
    start_at_frequencies: bool = False
    """Whether a fresh head begins with guessing each token as often as the store has it, or all
    alike. Beside `start_at_cooccurrences`, whose words guess already, it won nothing."""
    start_at_cooccurrences: bool | None = None
    """Whether a fresh model's words begin near those that stand in the same places of the store, or
    anywhere; see `mlm.data.cooccurrence`. By default they do, unless `model.path` is given."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        look_up(OBJECTIVES, self.name, "objective.name")
        if self.weight is not None and not 0 <= self.weight < 1e6:
            raise UserError(f"objective.weight: {self.weight} must be at least 0, and below 1e6")
        if self.weight is not None and OBJECTIVES[self.name].weight is None:
            raise UserError(f"objective.weight: {self.name} has no second loss; leave it out")
        for name, objective in _SHARES.items():
            value = getattr(self, name)
            if value is not None and self.name != objective:
                raise UserError(
                    f"objective.{name}: {self.name} has none; leave it out, or choose "
                    f"--objective.name {objective}"
                )
            if value is not None and not 0 < value <= 1:
                raise UserError(f"objective.{name}: {value} must lie above 0, and be at most 1")

    @property
    def depth(self) -> float:
        """The generator's layers, as a share of the encoder's."""
        return 0.5 if self.generator_depth is None else self.generator_depth

    @property
    def causal(self) -> float:
        """The share of causal steps."""
        if self.name != _SHARES["causal_share"]:
            return 0.0
        return 1 / 16 if self.causal_share is None else self.causal_share


@dataclass(frozen=True)
class Objective:
    """One way to train an encoder."""

    build: Callable[[MaskedLanguageModel, ObjectiveOptions], Any]
    """What is trained, around a masked language model."""
    loss: Callable[[Any, Batch], Loss] = masked_lm.loss
    """Of it and a batch that is masked."""
    score: Callable[[Any, Batch], Score] = masked_lm.score
    """Of it and a batch that is masked at the rate of validation."""
    score_second: Callable[[Any, Batch], Second] | None = None
    """Of it and such a batch; of one with pairs where there are any."""
    metric: str = ""
    """The name under which the second score is logged."""
    weight: float | None = None
    """Of the second loss; None where there is none."""
    negatives: str | None = None
    """What is a pair that does not follow, see `mlm.data.pairs.PairReader`; None: no pairs."""
    head: str = "masked_lm"
    """The head of the model folders that are left."""
    masked_lm_of: Callable[[Any], MaskedLanguageModel] = lambda model: model
    """What fills in masks."""


def _plain(model: MaskedLanguageModel, options: ObjectiveOptions) -> nn.Module:
    return model


def _paired(model: MaskedLanguageModel, options: ObjectiveOptions) -> nn.Module:
    return PairedMaskedLM(model)


def _detector(model: MaskedLanguageModel, options: ObjectiveOptions) -> nn.Module:
    return ReplacedTokenDetector(model, generator_layers(model.config, options))


OBJECTIVES: dict[str, Objective] = {
    "masked_lm": Objective(_plain),
    "masked_and_causal": Objective(_plain),
    "sentence_order": Objective(
        _paired,
        pair_order.loss,
        score_second=pair_order.score_second,
        metric="val/pair_accuracy",
        weight=1.0,
        negatives="swapped",
    ),
    "next_sentence": Objective(
        _paired,
        pair_order.loss,
        score_second=pair_order.score_second,
        metric="val/pair_accuracy",
        weight=1.0,
        negatives="another",
    ),
    "replaced_tokens": Objective(
        _detector,
        replaced_tokens.loss,
        replaced_tokens.score,
        replaced_tokens.score_second,
        "val/detection_accuracy",
        weight=50.0,
        head="encoder",
        masked_lm_of=lambda model: model.generator,
    ),
}


def generator_layers(config: EncoderConfig, options: ObjectiveOptions) -> int:
    """The depth of the generator beside an encoder: at least a layer."""
    return max(1, round(config.num_hidden_layers * options.depth))


def is_causal(options: ObjectiveOptions, seed: int, step: int) -> bool:
    """Whether a step is read causally, on all ranks."""
    return mix(seed, _CAUSAL, step) < options.causal * 2**64


def prepared(
    batch: Batch,
    options: ObjectiveOptions,
    rate: float,
    capacity: int | None,
    seed: int,
    step: int,
    sep: int,
) -> Batch:
    """What is learned from in a step: ``batch`` masked at ``rate``, or to be read causally.

    Args:
        batch: from `masked_lm.collate`.
        options: the objective's.
        rate: of masking.
        capacity: see `masked_lm.at_rate`.
        seed: of the run.
        step: its number, see `is_causal`.
        sep: id of [SEP].
    """
    if is_causal(options, seed, step):
        return masked_and_causal.causal(batch, sep)
    return masked_lm.at_rate(batch, rate, capacity)


def check_objective(options: ObjectiveOptions, config: EncoderConfig) -> None:
    """Refuse what a model cannot learn.

    Raises:
        UserError: so.
    """
    others = [kind for kind in config.attention if kind not in WINDOWED]
    if options.causal and others:
        raise UserError(
            f"objective.name: {options.name} needs attention, but model.attention has {others[0]}, "
            "which always sees every token"
        )
