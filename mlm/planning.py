"""What a given time of training is worth on this machine: size, batch, steps, rate and loss.

Sizes are trained in turn for some seconds each, on the store itself, to learn how many tokens each
would read in the time. The loss to expect of N weights in the layers and D tokens is

    L(N, D) = E + A / N^0.34 + B / D^0.28

with the exponents of Hoffmann et al. (https://arxiv.org/abs/2203.15556, section D.3) and E, A and B
fitted to the runs of our own in `MEASURED`. The size with the least loss is proposed. Those runs
are of two sizes, so what the law says of others lies between or beyond, and was not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.memory import ran_out
from mlm.model.config import SIZES, EncoderConfig, preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.batches import TrainingBatches
from mlm.training.data_options import DataOptions, Share
from mlm.training.flops import layer_weights
from mlm.training.optimizers import OptimizerOptions, build_optimizer

_N_EXPONENT, _D_EXPONENT = 0.34, 0.28


class Measured(NamedTuple):
    """A run of our own, to its end."""

    weights: float
    """N."""
    tokens: float
    """D."""
    loss: float
    """In validation, nats a masked token at 15 %."""
    what: str
    """Where it is recorded."""


# English text, 16,384 word pieces, rows of 128 tokens; see benchmarks/README.md and LOG.md. All but
# the two of `wsd` are of a line down.
MEASURED = (
    Measured(3.21e6, 19.6e6, 3.212, "4 x 256, half an hour of two cores, Wikipedia"),
    Measured(3.21e6, 10.2e6, 3.468, "4 x 256, 20 minutes of a core, GELU, Wikipedia"),
    Measured(3.21e6, 5.36e6, 3.784, "4 x 256, 12 minutes of a core, Wikipedia"),
    Measured(3.21e6, 1.64e6, 4.482, "4 x 256, 400 steps, GELU, wsd, Wikipedia"),
    # Before heads began at the neighbours, and of Wikipedia, film reviews and novels.
    Measured(38.5e6, 459e6, 2.033, "12 x 512, 510 s of an H200, GELU, wsd"),
)

# Tokens a step grow with the root of the tokens in all, as in https://arxiv.org/abs/2505.13738:
# 8,192 are best of what was tried at 10 M (LOG.md), and 65,536 were taken at 459 M.
_STEP_TOKENS, _STEP_TOKENS_AT = 8_192, 10e6
# The rate that 4 x 256 learns well at; wider layers want less.
_RATE, _RATE_WIDTH = 4e-3, 256
# As in the latest of those runs; it takes half the time of GELU on a CPU.
ACTIVATION = "silu"
# Fewer steps than that are no training.
_FEWEST_STEPS = 200


@dataclass(frozen=True)
class Law:
    """E, A and B of the module's formula."""

    floor: float
    of_weights: float
    of_tokens: float

    def loss(self, weights: float, tokens: float) -> float:
        """L(N, D), in nats a masked token."""
        gap_of_weights = self.of_weights * weights**-_N_EXPONENT
        return self.floor + gap_of_weights + self.of_tokens * tokens**-_D_EXPONENT


def fit(runs: Sequence[Measured] = MEASURED) -> Law:
    """The law with the least squares to ``runs``; three of them at least, of two sizes.

    >>> round(fit().loss(3.21e6, 19.6e6), 1)
    3.2
    """
    terms = [[1.0, r.weights**-_N_EXPONENT, r.tokens**-_D_EXPONENT] for r in runs]
    found, *_ = np.linalg.lstsq(np.array(terms), np.array([r.loss for r in runs]), rcond=None)
    return Law(*(float(x) for x in found))


def largest_error(law: Law, runs: Sequence[Measured] = MEASURED) -> float:
    """How far the law is from any of ``runs``, in nats."""
    return max(abs(law.loss(r.weights, r.tokens) - r.loss) for r in runs)


@dataclass(frozen=True)
class Plan:
    """What one size would come to."""

    size: str
    """Its name."""
    tokens_per_second: float
    """As measured."""
    tokens: float
    """That it would read."""
    batch_size: int
    """Rows a step."""
    steps: int
    """Optimizer steps."""
    lr: float
    """Peak learning rate."""
    loss: float
    """To expect in validation."""


def plan(size: str, config: EncoderConfig, speed: float, seconds: float, length: int) -> Plan:
    """What ``config`` would come to at ``speed`` tokens a second."""
    tokens = speed * seconds
    step_tokens = _STEP_TOKENS * (tokens / _STEP_TOKENS_AT) ** 0.5
    rows = 2.0 ** round(math.log2(max(1.0, step_tokens / length)))
    batch = int(min(max(rows, 16), 2048))
    while batch > 16 and tokens < _FEWEST_STEPS * batch * length:
        batch //= 2
    return Plan(
        size,
        speed,
        tokens,
        batch,
        int(tokens / (batch * length)),
        _RATE * (_RATE_WIDTH / config.hidden_size) ** 0.5,
        fit().loss(layer_weights(config), tokens),
    )


def plans(
    store: TokenStore,
    seconds: float,
    probing: float,
    device: str,
    bf16: bool,
    length: int = 128,
) -> Iterator[Plan]:
    """Of each size from the smallest on, until a larger one is no better or does not fit.

    Args:
        store: what would be read.
        seconds: the time to be planned.
        probing: seconds to measure for, all sizes together.
        device: where.
        bf16: whether products are computed so.
        length: tokens in a row.

    Raises:
        UserError: the time is not enough for the smallest.
    """
    best = math.inf
    for size in SIZES:
        config = preset("modern", size, vocab_size=store.vocab_size, activation=ACTIVATION)
        try:
            speed = measured_speed(config, store, probing / len(SIZES), device, bf16, length)
        except Exception as error:
            if ran_out(error):
                return
            raise
        found = plan(size, config, speed, seconds, length)
        if found.steps < _FEWEST_STEPS:
            if best < math.inf:
                return
            raise UserError(
                f"--budget: {seconds:g} s are {found.steps} steps of the smallest size here, where "
                f"{_FEWEST_STEPS} are the least; give more"
            )
        yield found
        if found.loss > best:
            return
        best = found.loss


def measured_speed(
    config: EncoderConfig, store: TokenStore, seconds: float, device: str, bf16: bool, length: int
) -> float:
    """Tokens a second of training steps as of `mlm pretrain`, but of 32 rows and not compiled."""
    options = DataOptions(batch_size=32, sequence_length=length)
    batches = TrainingBatches(store, options, Share(), seed=0)
    model = MaskedLanguageModel(config).to(device).train()
    optimizer = build_optimizer(model, OptimizerOptions())
    tokens, step, begin = 0, 0, 0.0
    while step < 4 or time.perf_counter() - begin < seconds:
        if step == 2:  # the first ones make buffers
            _wait_for(device)
            tokens, begin = 0, time.perf_counter()
        batch = masked_lm.at_rate(batches[step].to(device), options.mlm_probability)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            found = masked_lm.loss(model, batch)
            (found.sum / found.targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens, step = tokens + batch.num_tokens, step + 1
    _wait_for(device)
    return tokens / (time.perf_counter() - begin)


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
