"""Learning-rate schedules at their ends."""

import numpy as np
import pytest

from entropy_rl.schedules import learning_rate_schedule


def test_warmup_starts_above_zero_and_reaches_the_peak():
    rate = learning_rate_schedule("constant", peak=1.0, num_steps=100, warmup_steps=4)
    np.testing.assert_allclose([float(rate(i)) for i in (0, 4, 50, 1000)], [0.25, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_ends_where_it_should(kind):
    rate = learning_rate_schedule(kind, peak=2.0, num_steps=10, warmup_steps=2, end_fraction=0.1)
    assert float(rate(2)) == 2.0
    np.testing.assert_allclose([float(rate(10)), float(rate(99))], 0.2, rtol=1e-6)
    np.testing.assert_allclose(float(rate(6)), 1.1, rtol=1e-6)  # halfway, for both shapes


@pytest.mark.parametrize(
    ("options", "words"), [({"kind": "wave"}, "not one of"), ({"warmup_steps": 10}, "warmup_steps=")]
)
def test_wrong_input(options, words):
    with pytest.raises(ValueError, match=words):
        learning_rate_schedule(**{"kind": "constant", "peak": 1.0, "num_steps": 10} | options)
