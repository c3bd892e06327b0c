"""Accuracy from samples: mean@k, pass@k and maj@k with confidence intervals."""

import dataclasses
import math

import numpy as np

_Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over problems and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:5.1f} %  [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def pass_at_k(num_correct: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """Per problem the chance that k of its samples hold a correct one: 1 - C(n - c, k) / C(n, k), unbiased.

    Source: Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1.

    Args:
        num_correct: [P], correct samples c of each problem.
        num_samples: n.
        k: 1 to n.

    Raises:
        ValueError: for k outside 1 to n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {num_samples} samples")
    miss = [math.prod((n_wrong - i) / (num_samples - i) for i in range(k)) for n_wrong in num_samples - num_correct]
    return 1.0 - np.clip(np.array(miss, np.float64), 0.0, 1.0)


def majority_at_k(correct: np.ndarray, clusters: np.ndarray, k: int) -> np.ndarray:
    """Per problem how often the most frequent answer among k samples is correct, over its disjoint blocks of k samples.

    Self-consistency (Wang et al. 2022, https://arxiv.org/abs/2203.11171). Of equally frequent answers one is taken by
    lot: what is returned is the chance that it is a correct one.

    Args:
        correct: [P, n] of 0 and 1.
        clusters: [P, n], a number per sample, equal within a problem for equal answers; -1 for none, which has no vote.
        k: 1 to n; samples behind the last whole block are not used.

    Raises:
        ValueError: for k outside 1 to n.
    """
    num_samples = correct.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(f"maj@{k} needs 1 <= k <= {num_samples} samples")

    def chance(right: np.ndarray, numbers: np.ndarray) -> float:
        right, numbers = right[numbers >= 0], numbers[numbers >= 0]
        if not len(numbers):
            return 0.0
        values, counts = np.unique(numbers, return_counts=True)
        most = values[counts == counts.max()]
        return float(np.mean([np.mean(right[numbers == value]) for value in most]))

    blocks = range(0, num_samples - k + 1, k)
    return np.array(
        [
            np.mean([chance(right[i : i + k], numbers[i : i + k]) for i in blocks])
            for right, numbers in zip(correct, clusters, strict=True)
        ]
    )


def estimate(values: np.ndarray) -> Estimate:
    """Mean of per-problem values in [0, 1] with its 95 % interval over problems.

    The Wilson score interval where all values are 0 or 1, else the normal interval of the mean, cut to [0, 1].
    """
    values = np.asarray(values, np.float64)
    count, mean = len(values), float(np.mean(values))
    if np.all((values == 0) | (values == 1)) or np.ptp(values) == 0:
        shrink = 1 + _Z95**2 / count
        centre = (mean + _Z95**2 / (2 * count)) / shrink
        half = _Z95 * math.sqrt(mean * (1 - mean) / count + _Z95**2 / (4 * count**2)) / shrink
        return Estimate(mean, max(centre - half, 0.0) if mean else 0.0, min(centre + half, 1.0) if mean < 1 else 1.0)
    half = _Z95 * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0))


def accuracy_estimates(correct: np.ndarray, ks: tuple[int, ...] = ()) -> dict[str, Estimate]:
    """mean@n and pass@k, k in ``ks`` (default powers of two above 1, and n), from ``correct`` [P, n] of 0 and 1."""
    num_samples = correct.shape[1]
    counts = np.sum(correct, axis=1)
    ks = ks or tuple(sorted({2**i for i in range(1, num_samples.bit_length())} | {num_samples} - {1}))
    found = {f"mean@{num_samples}": estimate(counts / num_samples)}
    return found | {f"pass@{k}": estimate(pass_at_k(counts, num_samples, k)) for k in ks}
