"""What people look at: curves as PNG, several runs overlaid, and transcripts as one self-contained HTML page."""

import dataclasses
import gzip
import html
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from entropy_rl.metrics import read_metrics

# One panel each: title, y label, metrics drawn in it (the first is solid, the next dashed).
PANELS = (
    ("Reward", "mean reward", ("reward", "accuracy")),
    ("Held-out accuracy", "fraction correct", ("eval_mean@*", "eval_greedy")),
    ("Entropy", "nats per token", ("trainer_entropy",)),
    ("Entropy and its band", "nats per token", ("band_high", "band_low")),
    ("Control", "bias, fraction", ("band_gain", "rejected")),
    ("Predicted change of entropy", "correlation with the realised one", ("entropy_change_correlation",)),
    ("Erasing", "fraction of segments, of tokens", ("erased_segments", "erased_token_fraction")),
    ("Uncertainty of segments", "first attempts, accepted ones", ("segment_first_uncertainty", "segment_uncertainty")),
    ("Groups without a success", "fraction", ("all_failed_groups",)),
    ("Response length", "tokens", ("response_length",)),
    ("Clipped tokens", "fraction of tokens", ("clip_fraction_high", "clip_fraction_low")),
    ("Change of policy", "KL to old policy, nats", ("kl_old",)),
    ("Gradient norm", "before clipping", ("grad_norm",)),
    ("Sampler/trainer gap", "|log-prob difference|, max", ("log_prob_gap_max",)),
    ("Signal", "fraction", ("equal_groups", "truncated")),
)
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4b5563")


@dataclasses.dataclass(frozen=True)
class Series:
    """One run's values of one metric."""

    steps: np.ndarray
    values: np.ndarray


def _series(records: list[dict[str, Any]], name: str) -> Series | None:
    """Values of ``name`` ("*" matches any ending) over steps, None where there are none."""
    pattern = re.compile(re.escape(name).replace(r"\*", r"\d+"))
    points = [(r["step"], r[key]) for r in records for key in r if pattern.fullmatch(key) and r[key] is not None]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    return Series(np.array(steps), np.array(values, np.float64))


def group_runs(workdirs: Sequence[str]) -> dict[str, list[str]]:
    """Runs whose configs differ in their seed alone belong together; each group is named by its first workdir."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for workdir in workdirs:
        path = os.path.join(workdir, "config.json")
        if not os.path.exists(os.path.join(workdir, "metrics.jsonl")):
            raise ValueError(f"{workdir} holds no run: there is no metrics.jsonl in it")
        key = workdir
        if os.path.exists(path):
            with open(path) as file:
                config = json.load(file)
            key = json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True)
        name = os.path.basename(os.path.normpath(workdir))
        groups.setdefault(key, (name, []))[1].append(workdir)
    named: dict[str, list[str]] = {}
    for name, members in groups.values():
        label = f"{name} ({len(members)} seeds)" if len(members) > 1 else name
        while label in named:
            label += "'"
        named[label] = members
    return named


def _draw(axis, runs: list[Series], colour: str, *, dashed: bool) -> None:
    """One run as a line; several as their mean with a band of one standard deviation over the steps all have."""
    style = dict(color=colour, linestyle="--" if dashed else "-", linewidth=1.4)
    marker = "o" if max(len(run.steps) for run in runs) <= 12 else None
    if len(runs) == 1:
        axis.plot(runs[0].steps, runs[0].values, marker=marker, markersize=3.5, **style)
        return
    steps = runs[0].steps
    for run in runs[1:]:
        steps = np.intersect1d(steps, run.steps)
    values = np.array([run.values[np.isin(run.steps, steps)] for run in runs])
    mean, spread = values.mean(0), values.std(0, ddof=1)
    axis.plot(steps, mean, marker=marker, markersize=3.5, **style)
    axis.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)


def _same(first: dict[str, list[Series]], second: dict[str, list[Series]]) -> bool:
    """Whether two metrics have the same values in every run."""
    return first.keys() == second.keys() and all(
        np.array_equal(a.values, b.values) for name in first for a, b in zip(first[name], second[name], strict=False)
    )


def plot_curves(workdirs: Sequence[str], path: str) -> str:
    """Draws every panel that has data, one colour per group of runs, into the PNG ``path``.

    Raises:
        ValueError: where a workdir holds no run, or none has a metric to draw.
    """
    groups = {name: [read_metrics(os.path.join(d, "metrics.jsonl")) for d in members]
              for name, members in group_runs(workdirs).items()}  # fmt: skip
    found: dict[str, dict[str, dict[str, list[Series]]]] = {}
    for title, _, metrics in PANELS:
        for metric in metrics:
            for name, members in groups.items():
                runs = [run for run in (_series(records, metric) for records in members) if run is not None]
                if runs:
                    found.setdefault(title, {}).setdefault(metric, {})[name] = runs
    panels = [panel for panel in PANELS if panel[0] in found]
    if not panels:
        raise ValueError(f"nothing to draw in {', '.join(workdirs)}: no step has finished yet")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.4 * columns, 3.0 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, unit, metrics) in zip(axes.flat, panels, strict=False):
        drawn = [metric for metric in metrics if metric in found[title]]
        if len(drawn) > 1 and _same(*(found[title][metric] for metric in drawn)):
            drawn = drawn[:1]
        for order, metric in enumerate(drawn):
            for name, runs in found[title][metric].items():
                colour = _COLOURS[list(groups).index(name) % len(_COLOURS)]
                _draw(axis, runs, colour, dashed=order > 0)
        axis.set_title(title, fontsize=11, fontweight="bold", loc="left")
        axis.set_ylabel(unit, fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if not any(np.any(run.values) for metric in drawn for runs in found[title][metric].values() for run in runs):
            axis.set_ylim(0, 1)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if len(drawn) > 1:
            lines = [plt.Line2D([], [], color="#333333", linestyle=s) for s in ("-", "--")]
            names = [metric.removeprefix("eval_").replace("@*", "@k").replace("_", " ") for metric in drawn]
            axis.legend(lines, names, fontsize=8, frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=9)
    handles = [plt.Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=2) for i in range(len(groups))]
    figure.legend(handles, list(groups), loc="outside lower center", ncols=min(4, len(groups)), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body{{font:15px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#1f2937;background:#fff}}
h1{{font-size:1.4rem;margin-bottom:.2rem}}h2{{font-size:1.05rem;margin:2rem 0 .8rem}}
.prompt{{white-space:pre-wrap;background:#f3f4f6;border-radius:6px;padding:.5rem .8rem;margin-top:1.2rem}}
.row{{display:grid;grid-template-columns:9.5rem 1fr;gap:.8rem;padding:.45rem 0;border-bottom:1px solid #e5e7eb}}
.text{{white-space:pre-wrap;font-family:ui-monospace,monospace;font-size:14px;overflow-wrap:anywhere}}
.text span{{border-radius:2px}}.mark{{color:#4b5563;font-style:italic}}.note{{color:#6b7280;font-size:13px}}
.good{{color:#047857;font-weight:600}}.bad{{color:#b91c1c;font-weight:600}}
.seg{{font:11px/1 system-ui,sans-serif;color:#6b7280;margin:0 .45em 0 .15em;padding:.05em .3em;
background:#eef2ff;border-radius:3px;vertical-align:.1em;white-space:nowrap}}.seg.over{{background:#fee2e2;color:#991b1b}}
del{{opacity:.55;text-decoration:line-through #b91c1c 2px;margin-right:.25em}}
.scale{{display:inline-block;width:11rem;height:.8rem;border-radius:3px;vertical-align:middle;margin:0 .4rem;
background:linear-gradient(to right,{gradient})}}
</style></head><body><h1>{title}</h1>
<p class="note">Each token is coloured by the policy's entropy where it was drawn: 0
<span class="scale"></span> {top:.2f} nats and above. Point at a token for its numbers.{legend}</p>
{body}</body></html>
"""


_SEGMENT_LEGEND = (
    ' Behind each segment stand its <span class="seg">uncertainty/threshold</span>; an attempt above it was '
    "<del>erased</del> and sampled again."
)


def _colour(fraction: float) -> str:
    """White for 0, over yellow, to orange-red for 1."""
    stops = np.array([[255, 255, 255], [254, 240, 138], [251, 146, 60], [239, 68, 68]])
    place = min(max(fraction, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    red, green, blue = stops[low] + (place - low) * (stops[low + 1] - stops[low])
    return f"rgb({red:.0f},{green:.0f},{blue:.0f})"


def _token_html(piece: str, entropy: float, log_prob: float, top: float) -> str:
    shown = html.escape(piece).replace("\n", "⏎\n")
    mark = ' class="mark"' if re.fullmatch(r"<[^<>]*>", piece) else ""
    title = f"{piece!r}  entropy {entropy:.3f} nats, probability {np.exp(log_prob):.3f}"
    style = f'style="background:{_colour(entropy / top)}" title="{html.escape(title, quote=True)}"'
    return f"<span{mark} {style}>{shown}</span>"


def read_rollouts(path: str) -> list[dict[str, Any]]:
    """Records of one saved step."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_transcripts(workdir: str, path: str, *, max_steps: int = 6, max_groups: int = 6) -> str | None:
    """Writes saved rollouts (first, last and evenly between) as one HTML page; None where none were saved."""
    directory = os.path.join(workdir, "rollouts")
    names = sorted(n for n in os.listdir(directory) if n.endswith(".jsonl.gz")) if os.path.isdir(directory) else []
    if not names:
        return None
    chosen = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(max_steps, len(names)))})
    records = [read_rollouts(os.path.join(directory, names[i])) for i in chosen]
    values = np.concatenate([r["entropy"] for step in records for r in step])
    top = max(float(np.quantile(values, 0.98)), 0.1)
    parts = []
    for step in records:
        parts.append(f"<h2>Step {step[0]['step']}</h2>")
        key = lambda record: (record["problem"], record.get("context", 0))  # noqa: E731
        for wanted in list(dict.fromkeys(map(key, step)))[:max_groups]:
            group = [r for r in step if key(r) == wanted]
            prompt, answer = html.escape(group[0]["prompt"].rstrip("\n")), html.escape(group[0]["answer"])
            parts.append(f'<div class="prompt">{prompt} <span class="note">answer: {answer}</span></div>')
            parts.extend(_response_html(record, top) for record in group)
    scored = any("uncertainty" in r for step in records for r in step)
    legend = _SEGMENT_LEGEND if scored else ""
    gradient = ",".join(_colour(i / 6) for i in range(7))
    title = html.escape(f"Transcripts of {os.path.basename(os.path.normpath(workdir))}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(_PAGE.format(title=title, gradient=gradient, top=top, legend=legend, body="\n".join(parts)))
    return path


def _tokens_html(pieces, entropy, log_probs, top: float) -> str:
    return "".join(_token_html(*token, top) for token in zip(pieces, entropy, log_probs, strict=True))


def _segment_note(record: dict[str, Any], segment: int) -> str:
    """What a finished segment scored, held against its threshold; nothing for one that was not scored."""
    if segment >= len(record["uncertainty"]):
        return ""
    score, threshold = record["uncertainty"][segment], record["threshold"][segment]
    erasures = record["erasures"][segment]
    limit = f"{threshold:.2f}" if threshold else "–"
    title = f"segment {segment + 1}: uncertainty {score:.3f}, threshold {threshold:.3f}, erased {erasures} times"
    kind = "seg over" if threshold and score > threshold else "seg"
    return f'<span class="{kind}" title="{title}">{score:.2f}/{limit}</span>'


def _response_text(record: dict[str, Any], top: float) -> str:
    """The tokens, with erased attempts struck through before what replaced them and the score behind each segment."""
    pieces, entropy, log_probs = record["pieces"], record["entropy"], record["raw_log_probs"]
    segments = record.get("segment_ids")
    if segments is None:
        return _tokens_html(pieces, entropy, log_probs, top)
    starts = [i for i in range(len(pieces)) if i == 0 or segments[i] != segments[i - 1]]
    parts = []
    for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
        for attempt in record.get("attempts", ()):
            if attempt["start"] == start:
                text = _tokens_html(attempt["pieces"], attempt["entropy"], attempt["raw_log_probs"], top)
                parts.append(f"<del>{text}</del>")
        parts.append(_tokens_html(pieces[start:end], entropy[start:end], log_probs[start:end], top))
        parts.append(
            _segment_note(record, segments[start]) if "uncertainty" in record else '<span class="seg">|</span>'
        )
    return "".join(parts)


def _response_html(record: dict[str, Any], top: float) -> str:
    kind = "good" if record.get("correct", record["reward"] > 0) else "bad"
    mean = float(np.mean(record["entropy"])) if record["entropy"] else 0.0
    notes = ["replayed"] if record.get("replayed") else [f"mean entropy {mean:.3f}"]
    if not record.get("stopped", True):
        notes.append("cut at the length limit")
    if sum(record.get("erasures", ())):
        notes.append(f"erased {sum(record['erasures'])}")
    head = f'<span class="{kind}">reward {record["reward"]:.3g}</span>'
    head += "".join(f'<br><span class="note">{note}</span>' for note in notes)
    return f'<div class="row"><div>{head}</div><div class="text">{_response_text(record, top)}</div></div>'
