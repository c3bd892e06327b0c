"""Slots per step of the Pallas kernel, by chip and shape.

Nothing here was timed: ``MEASURED`` is empty, so that "auto" stays with XLA until a kernel has beaten it on the chip. A
step's transfer takes about 1.3 us at the chip's peak bandwidth (.82, 2.77 and 1.64 TB/s), which should hide the step's
own cost; larger blocks read more dead slots, half a block per row on average.
"""

MIB = 2**20
# chip -> bytes of keys and values that one step reads.
STEP_BYTES = {"v5e": MIB, "v5p": 4 * MIB, "v6e": 2 * MIB}
UNTUNED = 2 * MIB
MAX_BLOCK = 2048
VMEM_LIMIT = 32 * MIB
# (chip, K, N // K, H, dtype of the cache) -> the implementation that was fastest there.
MEASURED: dict[tuple[str, int, int, int, str], str] = {}


def tpu_block(chip: str, kv_heads: int, head_dim: int, dtype: str) -> int:
    """Slots per step: the power of two from 128 to ``MAX_BLOCK`` that reads about the chip's ``STEP_BYTES``."""
    slot_bytes = 2 * kv_heads * head_dim * (4 if dtype == "float32" else 2)
    block = MAX_BLOCK
    while block > 128 and block * slot_bytes > STEP_BYTES.get(chip, UNTUNED):
        block //= 2
    return block


def measured_implementation(chip: str, kv_heads: int, group: int, head_dim: int, dtype: str) -> str:
    """What was fastest there, or "xla" where nothing has been timed."""
    return MEASURED.get((chip, kv_heads, group, head_dim, dtype), "xla")
