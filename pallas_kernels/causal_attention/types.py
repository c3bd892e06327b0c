"""What the implementations share."""

from typing import Any

from flax import struct


class SharedPrompt(struct.PyTreeNode):
    """Says that a row holds a prompt and several continuations of it, one behind the other.

    A row of S tokens is ``size`` places of the prompt, the first ``length`` in use, then ``count`` continuations of
    (S - size) / count places each, which see the prompt and their own earlier tokens, but not each other.

    Attributes:
        length: int32 [B], at least 1.
        size: places of the prompt.
        count: continuations.
    """

    length: Any
    size: int = struct.field(pytree_node=False)
    count: int = struct.field(pytree_node=False)
