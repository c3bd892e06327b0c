"""What the operation returns."""

from typing import Any

from flax import struct


class TokenStats(struct.PyTreeNode):
    """Per-row statistics of one softmax, f32 [R], in nats.

    Attributes:
        log_probs: log-probability of the row's target.
        entropy: -sum p log p.
        logsumexp: lse of the (capped, tempered) logits.
        varentropy: sum p (log p)^2 - entropy^2, or None where it was not asked for.
    """

    log_probs: Any
    entropy: Any
    logsumexp: Any
    varentropy: Any = None
