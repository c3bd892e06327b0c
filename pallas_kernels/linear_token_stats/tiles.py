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
# Of the GPU kernel: (block_rows, block_vocab, stages). 64 rows by 256 columns of f32 logits take 128 of the 232
# registers of a warpgroup's thread; four stages of (128 + 256) x 64 operands of 16 bits, 192 of 227 KiB shared memory.
GPU_UNTUNED = (128, 256, 4)
GPU_BLOCKS = 132  # blocks at once, one on each multiprocessor of an H100 or H200
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


def gpu_tiles(chip: str, width: int, vocab: int, dtype: str) -> tuple[int, int, int]:
    """(block_rows, block_vocab, stages) of the GPU kernel: tuned, else the default, which fits at every width."""
    return TUNED.get((chip, width, vocab, dtype), GPU_UNTUNED)


def gpu_split_tiles(row_tiles: int, vocab_tiles: int) -> int:
    """Vocabulary tiles of one split: the number with which the blocks' waves last shortest.

    At least 8 splits, so that the few rows of one wave of blocks stay in L2; at most 16, or what fills one wave, as
    every tile of rows reads the whole weight.
    """
    fewest, most = min(8, vocab_tiles), min(max(16, GPU_BLOCKS // row_tiles), vocab_tiles)
    sizes = {-(-vocab_tiles // splits) for splits in range(fewest, most + 1)}
    return min(sizes, key=lambda size: (-(-row_tiles * -(-vocab_tiles // size) // GPU_BLOCKS) * size, -size))


def measured_implementation(chip: str, width: int, vocab: int, dtype: str) -> str:
    """What was fastest there, or "xla" where nothing has been timed."""
    return MEASURED.get((chip, width, vocab, dtype), "xla")
