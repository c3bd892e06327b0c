"""Study 1: who holds an entropy band, of which shape, and what it costs.

    python -m experiments.studies.schedules --seeds=2
    python -m experiments.studies.schedules --seeds=5        # not yet run

Chains of 3 to 6 steps from one base policy, 24 x 8 responses a step, one update a step at 1e-4. Each of five shapes of
a band of .03 nats is asked of each way Entrocraft has; the baselines run once and are held against every band.
"""

import os
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from entropy_rl.schedules import Band, entropy_band
from experiments.studies import grid

STEPS, WIDTH, SETTLED = 300, 0.03, 30
CONFIG = "configs/entrocraft.py"
BANDS: dict[str, dict[str, Any]] = {
    "constant": {"band": "constant", "low": (0.11, 0.11)},
    "linear": {"band": "linear", "low": (0.12, 0.05)},
    "cosine": {"band": "cosine", "low": (0.12, 0.05)},
    "sine": {"band": "sine", "low": (0.12, 0.06), "period": 150.0},
    "rising": {"band": "linear", "low": (0.11, 0.17)},
}
SELECTS: dict[str, dict[str, Any]] = {
    "sign": {"select": "sign"},
    "reward_sign": {"select": "sign", "variant": "reward_sign"},
    "predicted": {"select": "predicted", "margin": 0.008},
    "rejection": {"select": "controlled_rejection", "proportional": 30.0, "integral": 2.0, "max_gain": 1.0},
    "controlled": {"select": "controlled", "proportional": 16.0, "integral": 1.0},
}
# The best way is asked for all five shapes, the others for those that tell them apart.
SHAPES = {
    "sign": ("constant", "linear"),
    "reward_sign": ("constant",),
    "predicted": ("constant", "linear", "rising"),
    "rejection": ("constant",),
}
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "GRPO": ("grpo", {}),
    "entropy bonus": ("entropy_bonus", {}),
    "adaptive entropy": ("adaptive_entropy", {"recipe.options.target": 0.125}),
    "clip-higher": ("grpo", {"recipe.options.clip_high": 0.28}),
    "Clip-Cov": ("clip_cov", {}),
    "KL-Cov": ("kl_cov", {}),
    "80/20": ("top_entropy", {}),
    "W-REINFORCE": ("w_reinforce", {}),
    "EntroPIC": ("entropic", {"recipe.options.target": 0.125}),
}


def _high(low: tuple[float, float]) -> tuple[float, float]:
    return (round(low[0] + WIDTH, 6), round(low[1] + WIDTH, 6))


def bands() -> dict[str, Band]:
    """The five shapes as functions of the step."""
    made = {}
    for name, options in BANDS.items():
        low = options["low"]
        made[name] = entropy_band(
            options["band"], low=low, high=_high(low), num_steps=STEPS, period=options.get("period")
        )
    return made


def cells() -> list[grid.Cell]:
    """Entrocraft's ways on the shapes, then the baselines."""
    made = [grid.Cell(name, f"configs/{config}.py", overrides) for name, (config, overrides) in BASELINES.items()]
    for select, options in SELECTS.items():
        for shape in SHAPES.get(select, tuple(BANDS)):
            band = BANDS[shape] | {"high": _high(BANDS[shape]["low"])}
            overrides = {f"entrocraft.{key}": value for key, value in (band | options).items()}
            made.append(grid.Cell(f"{select} {shape}", CONFIG, overrides))
    return made


def measures(records: list[dict[str, Any]], band: Band) -> tuple[float, float]:
    """(fraction of settled steps inside the band, RMS distance outside it in nats), of the step's mean entropy."""
    steps = [r for r in records if "trainer_entropy" in r and r["step"] > SETTLED]
    entropy = np.array([r["trainer_entropy"] for r in steps])
    low, high = (np.array(edge) for edge in zip(*(band(r["step"] - 1) for r in steps), strict=True))
    outside = np.maximum(np.maximum(low - entropy, entropy - high), 0)
    return float(np.mean(outside == 0)), float(np.sqrt(np.mean(outside**2)))


def _measure(band: Band, which: int):
    return lambda records, summary: measures(records, band)[which]


def tables(out: str, seeds: int, chosen: list[grid.Cell]) -> str:
    """Both tables in Markdown: Entrocraft's ways, and the baselines against every band."""
    shapes = bands()
    names = {c.name for c in chosen}
    text = ["Baselines (no band is asked of them).\n", grid.table(
        [c for c in chosen if c.name in BASELINES], out, seeds, grid.ACCURACY)]  # fmt: skip
    for shape, band in shapes.items():
        own = [c for c in cells() if c.name.endswith(f" {shape}") and c.name in names]
        own += [c for c in chosen if c.name in ("GRPO", "adaptive entropy", "EntroPIC")]
        columns: list[grid.Column] = [
            ("inside %", _measure(band, 0), 100.0, 0),
            ("RMS outside", _measure(band, 1), 1.0, 4),
            ("rejected %", grid.average("rejected"), 100.0, 0),
            ("correlation", grid.final("entropy_change_correlation"), 1.0, 2),
            *grid.ACCURACY,
        ]
        text += [f"\nBand: {shape}.\n", grid.table(own, out, seeds, columns)]
    return "\n".join(text)


def figure(out: str, seeds: int, chosen: list[grid.Cell], path: str) -> None:
    """Realised entropy against the band, a panel per shape."""
    shapes = bands()
    colours = {"sign": "#d97706", "reward_sign": "#be185d", "predicted": "#059669", "rejection": "#9333ea",
               "controlled": "#2563eb", "GRPO": "#6b7280"}  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained", sharey=True)
    by_name = {cell.name: cell for cell in chosen}
    for axis, (shape, band) in zip(axes.flat, shapes.items(), strict=False):
        steps = np.arange(STEPS)
        low, high = (np.array(edge) for edge in zip(*(band(s) for s in steps), strict=True))
        axis.fill_between(steps, low, high, color="#111827", alpha=0.12, linewidth=0, label="band")
        for select, colour in colours.items():
            cell = by_name.get(select if select == "GRPO" else f"{select} {shape}")
            runs = [] if cell is None else grid.finished_runs(out, cell, seeds)
            if not runs:
                continue
            values = [[r["trainer_entropy"] for r in records if "trainer_entropy" in r] for _, records in runs]
            size = min(map(len, values))
            mean = np.mean([v[:size] for v in values], axis=0)
            axis.plot(np.arange(size), mean, color=colour, linewidth=1.0, label=select)
        axis.set_title(shape, loc="left", fontweight="bold", fontsize=11)
        axis.set_ylim(0, 0.26)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step", fontsize=9)
    axes.flat[0].set_ylabel("entropy, nats per token")
    axes.flat[3].set_ylabel("entropy, nats per token")
    axes.flat[5].set_visible(False)
    handles: dict[str, Any] = {}
    for axis in axes.flat[:5]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="lower right", frameon=False, ncols=2, fontsize=11,
                  bbox_to_anchor=(0.97, 0.15))  # fmt: skip
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv) -> None:
    """Runs what is missing and writes the tables and the figure."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    base = grid.make_base(f.out, "configs/quickstart.py", grid.POLICY)
    common = grid.COMMON | grid.POLICY | {"base": base, "steps": STEPS}
    chosen = grid.run_cells(cells(), f.out, seeds=f.seeds, workers=f.workers, common=common, only=f.only)
    figure(f.out, f.seeds, chosen, os.path.join(f.out, "schedules.png"))
    grid.write(f.out, "schedules.md", tables(f.out, f.seeds, chosen))


if __name__ == "__main__":
    grid.define_flags("runs/studies/schedules")
    app.run(main)
