"""Masked and causal language modelling in one model, a step of the one or of the other.

After GPT-BERT (https://arxiv.org/abs/2410.24159). There a masked token is read where the token
before it stands, so that both tasks read alike; here it is read at its own place, so that what is
left is an ordinary masked language model, which every other program can load.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mlm.batch import Batch
from mlm.data.masking import IGNORE_INDEX


def causal(batch: Batch, sep: int) -> Batch:
    """Every token is to be predicted from those before it in its sequence.

    Args:
        batch: from `masked_lm.collate`, whose ids are as they were.
        sep: id of [SEP], which ends a sequence; what fills a batch up is made of it alone.

    Returns:
        A batch of the same ids with (T,) labels, each the next id; `IGNORE_INDEX` at each [SEP].
    """
    ids = batch.input_ids
    labels = torch.cat([ids[1:], ids.new_full((1,), IGNORE_INDEX)])
    labels = labels.masked_fill(ids == sep, IGNORE_INDEX)
    batch = replace(batch, masked_positions=None, replacements=None, mask_thresholds=None)
    return replace(batch, labels=labels, causal=True)
