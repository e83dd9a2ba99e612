"""How much arithmetic training needs, and how much the hardware does.

FLOPs a token = 6·N + 12·L·D·s̄ + 6·r·(D² + D·V): N matrix weights of the layers, s̄ the mean number
of keys that a token attends to, r the share of tokens that reach the head; a Fourier transform
counts nothing. Forward counts 2 a weight, backward 4. Recomputation does not count
(https://arxiv.org/abs/2204.02311, appendix B).
"""

from __future__ import annotations

import time

import numpy as np
import torch

from mlm.model.config import MATRICES, EncoderConfig
from mlm.objectives.table import OBJECTIVES, ObjectiveOptions, generator_layers
from mlm.training.precision import has_bf16

# Dense bf16 FLOP/s from the makers' data sheets, without sparsity.
_CUDA_PEAKS: dict[str, float] = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
    "V100": 125e12,
}


def mean_keys(lengths: np.ndarray, window: int | None = None) -> float:
    """How many keys a token attends to in the mean, Σs² / Σs without a window.

    Args:
        lengths: (N,) tokens in each sequence.
        window: a token sees ``window`` tokens to each side; None for all of its sequence.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    if window is None:
        return float((lengths**2).sum() / lengths.sum())
    reach = np.minimum(window, lengths - 1)
    return float((lengths * (2 * reach + 1) - reach * (reach + 1)).sum() / lengths.sum())


def layer_weights(config: EncoderConfig) -> int:
    """N: the numbers in the matrices of all layers."""
    kinds = [config.layer_attention(index) for index in range(config.num_hidden_layers)]
    mixing = sum(MATRICES[kind] for kind in kinds) * config.hidden_size**2
    inner = (3 if config.feed_forward == "glu" else 2) * config.intermediate_size
    return mixing + len(kinds) * inner * config.hidden_size


def flops_per_token(config: EncoderConfig, lengths: np.ndarray, head_share: float) -> float:
    """Training FLOPs a token.

    Args:
        config: the encoder.
        lengths: (N,) lengths of typical sequences.
        head_share: the share of tokens at which the vocabulary is predicted.
    """
    d = config.hidden_size
    windows = config.attention_windows()
    keys = {window: mean_keys(lengths, window) for window in set(windows)}
    attention = sum(12 * d * keys[window] for window in windows)
    dense = d * d if config.lm_head == "transform" else 0
    head = 6 * head_share * (dense + d * config.vocab_size)
    return 6 * layer_weights(config) + attention + head


def objective_flops(
    options: ObjectiveOptions, config: EncoderConfig, lengths: np.ndarray, masked: float
) -> float:
    """Training FLOPs a token of an objective, its small heads left out; ``masked`` is the share."""
    masked += options.causal * (1 - masked)  # causal steps predict at every place
    if OBJECTIVES[options.name].head == "masked_lm":
        return flops_per_token(config, lengths, masked)
    generator = config.replace(num_hidden_layers=generator_layers(config, options))
    return flops_per_token(config, lengths, 0) + flops_per_token(generator, lengths, masked)


def peak_flops(device: str, precision: str) -> float:
    """FLOP/s that ``device`` can do: from data sheets on CUDA, measured in 0.3 s on a CPU.

    Args:
        device: `cpu`, `cuda` or `mps`.
        precision: Lightning's name, resolved.

    Returns:
        nan where it is not known.
    """
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((peak for key, peak in _CUDA_PEAKS.items() if key in name), float("nan"))
    if device != "cpu":
        return float("nan")
    low = precision.startswith("bf16") and has_bf16("cpu")
    matrix = torch.ones(2048, 2048, dtype=torch.bfloat16 if low else torch.float32)
    best = float("inf")
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until or best == float("inf"):
        begin = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best
