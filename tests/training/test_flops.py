"""The formula against figures worked out by hand and against its definition."""

import numpy as np
import pytest

from mlm.model.config import preset
from mlm.training.flops import flops_per_token, mean_keys, peak_flops


def test_bert_base_at_512_needs_the_published_amount():
    # 6·85 M + 12·12·768·512 + 6·0.15·(768² + 768·30,522): 588 MFLOP a token.
    flops = flops_per_token(preset("bert", "base"), np.array([512]), 0.15)
    assert flops / 1e6 == pytest.approx(588, rel=0.005)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_mean_keys_counts_what_each_token_sees(window):
    lengths = np.array([1, 7, 30])
    seen = [
        sum(window is None or abs(i - j) <= window for j in range(n))
        for n in lengths
        for i in range(n)
    ]
    assert mean_keys(lengths, window) == pytest.approx(np.mean(seen))


def test_the_cpu_has_a_peak_and_an_unknown_device_has_none():
    assert peak_flops("cpu", "32-true") > 1e9
    assert np.isnan(peak_flops("mps", "32-true"))
