"""Tile sizes of the Pallas kernels, by chip and shape.

Every entry says how it was found. Without a device nothing can be timed: the entries are what the TPU compiler accepts
with room for double buffering, rows at or above the chip's ridge (bf16 FLOPs per HBM byte), and ``MEASURED`` is empty,
so that "auto" stays with XLA until a kernel has beaten it on the chip.
"""

MIB = 2**20
# chip -> (block_rows, block_vocab, VMEM limit). By the chips' peak rates the ridge is 240 rows on v5e, 166 on v5p, 561
# on v6e.
DEFAULTS: dict[str, tuple[int, int, int]] = {
    "v5e": (512, 512, 64 * MIB),
    "v5p": (512, 512, 64 * MIB),
    "v6e": (1024, 512, 64 * MIB),
}
UNTUNED = (512, 512, 64 * MIB)
# (chip, D, V, dtype) -> the same, found by timing; and the implementation that was fastest there.
TUNED: dict[tuple[str, int, int, str], tuple[int, int, int]] = {}
MEASURED: dict[tuple[str, int, int, str], str] = {}


def tpu_tiles(chip: str, width: int, vocab: int, dtype: str) -> tuple[int, int, int]:
    """(block_rows, block_vocab, VMEM limit in bytes): tuned, else the chip's default, halved for wide hidden states."""
    if (tuned := TUNED.get((chip, width, vocab, dtype))) is not None:
        return tuned
    rows, columns, limit = DEFAULTS.get(chip, UNTUNED)
    size = 4 if dtype == "float32" else 2
    # Two buffers of the weight tile, one or two of the rows, and a dozen f32 arrays of a tile of logits.
    while rows > 128 and 2 * size * width * (rows + columns) + 12 * 4 * rows * columns > limit:
        rows //= 2
    return rows, columns, limit


def measured_implementation(chip: str, width: int, vocab: int, dtype: str) -> str:
    """What was fastest there, or "xla" where nothing has been timed."""
    return MEASURED.get((chip, width, vocab, dtype), "xla")
