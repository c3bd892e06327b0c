"""pass@k against enumeration, intervals against their definition."""

import itertools

import numpy as np
import pytest

from entropy_rl.evaluate import accuracy_estimates, estimate, pass_at_k


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_against_enumeration(n):
    for correct in range(n + 1):
        samples = [1] * correct + [0] * (n - correct)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(samples, k))
            want = np.mean([any(s) for s in subsets])
            np.testing.assert_allclose(pass_at_k(np.array([correct]), n, k), [want], atol=1e-12)
    with pytest.raises(ValueError, match="needs 1 <= k"):
        pass_at_k(np.array([1]), n, n + 1)


def test_estimates_by_hand():
    correct = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    found = accuracy_estimates(correct)
    assert list(found) == ["mean@4", "pass@2", "pass@4"]
    assert found["mean@4"].mean == 0.25
    np.testing.assert_allclose(found["pass@2"].mean, (1 - 1 / 6) / 2)
    assert found["pass@4"].mean == 0.5


def test_intervals():
    wilson = estimate(np.array([1.0] * 8 + [0.0] * 2))  # the textbook interval of 8 out of 10
    np.testing.assert_allclose([wilson.low, wilson.high], [0.4902, 0.9433], atol=1e-4)
    nothing = estimate(np.zeros(20))
    assert nothing.low == 0.0
    assert 0.1 < nothing.high < 0.2  # no success in 20 does not prove that there is none
    values = np.array([0.0, 0.5, 0.25, 0.75])
    normal = estimate(values)
    np.testing.assert_allclose(normal.high - normal.mean, 1.96 * values.std(ddof=1) / 2, rtol=1e-3)


def test_intervals_cover():
    """A 95 % interval of 200 Bernoulli draws covers the truth in 93 to 97.5 % of 1,000 trials."""
    rng = np.random.default_rng(0)
    intervals = [estimate((rng.random(200) < 0.3).astype(float)) for _ in range(1000)]
    assert 0.93 <= np.mean([e.low <= 0.3 <= e.high for e in intervals]) <= 0.975
