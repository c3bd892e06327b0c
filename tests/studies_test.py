"""The studies' grids: every cell is a config that can run, and the tables say what the runs say."""

import importlib.util
import itertools
import json

import jax
import numpy as np
import pytest

from entropy_rl.data.tasks import Chains
from entropy_rl.model.tokenizer import CharTokenizer
from entropy_rl.parallel.mesh import make_mesh
from experiments.building import check_rows, make_run_recipe
from experiments.studies import curriculum, erasing, exploration, grid, hard_prompts, schedules, together

TRAINED = [grid.Cell(name, config, overrides) for name, (config, overrides) in erasing.TRAINED.items()]
GRIDS = {
    "schedules": (schedules.cells(), grid.POLICY | {"steps": schedules.STEPS}),
    "exploration": (exploration.CELLS, grid.COUNTDOWN | exploration.COMMON),
    "erasing": (TRAINED, grid.POLICY | {"steps": 300, "stop_at_tokens": erasing.TOKENS}),
    "curriculum": (curriculum.CELLS, grid.POLICY | curriculum.COMMON),
    "hard_prompts": (hard_prompts.CELLS, grid.COUNTDOWN | hard_prompts.RANKED | hard_prompts.COMMON),
    "together": (together.CELLS, grid.POLICY | together.COMMON),
}
ALL = [(study, cell) for study, (cells, _) in GRIDS.items() for cell in cells]


def config_of(cell):
    spec = importlib.util.spec_from_file_location("config", cell.config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize(("study", "cell"), ALL, ids=[f"{study}-{cell.name}" for study, cell in ALL])
def test_cells_can_run(study, cell):
    config = config_of(cell)
    values = grid.COMMON | GRIDS[study][1] | {"seed": 1, "base": "somewhere"} | cell.overrides
    config.update_from_flattened_dict(values)  # an unknown key or another type raises
    recipe = make_run_recipe(config, CharTokenizer(Chains().alphabet))
    check_rows(config, recipe, make_mesh(devices=jax.devices()[:1]))
    assert config.seed == 1


def test_names_are_unique():
    for cells, _ in GRIDS.values():
        names = [cell.name for cell in cells]
        assert len(set(names)) == len(names)


def fake_run(out, cell, seed, entropies, accuracy):
    workdir = out / "runs" / f"{cell.name}-{seed}"
    workdir.mkdir(parents=True)
    records = [{"step": i + 1, "reward": 0.5, "trainer_entropy": h} for i, h in enumerate(entropies)]
    records[-1]["eval_mean@16"] = accuracy
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (workdir / "summary.json").write_text(json.dumps({"steps": len(records), "sampled_tokens": 7}))


def test_tables(tmp_path):
    cell, other = grid.Cell("a", "x"), grid.Cell("b", "x")
    fake_run(tmp_path, cell, 0, [0.1] * 3, 0.5)
    fake_run(tmp_path, cell, 1, [0.1] * 3, 0.7)
    columns = [("mean@16 %", grid.final("eval_mean@16"), 100.0, 1), ("steps", lambda _, s: s["steps"], 1.0, 0)]
    lines = grid.table([cell, other], str(tmp_path), 2, columns).splitlines()
    # mean 60, standard deviation 14.14, t = 12.706 with one degree of freedom: 12.706 * 14.14 / sqrt 2 = 127.06
    assert lines[2] == "| a | 2 | 60.0 ± 127.1 | 3 ± 0 |"
    assert lines[3] == "| b | 0 | – | – |"
    assert grid.shown([0.25]) == "25.0"


def test_time_in_band():
    band = lambda step: (0.1, 0.2)
    inside = [0.9] * schedules.SETTLED + [0.15, 0.1, 0.3, 0.05]
    records = [{"step": i + 1, "trainer_entropy": h} for i, h in enumerate(inside)]
    fraction, distance = schedules.measures(records, band)
    assert fraction == 0.5
    np.testing.assert_allclose(distance, np.sqrt((0.1**2 + 0.05**2) / 4), rtol=1e-6)


def test_first_attempts_of_a_chain():
    task, tokenizer = Chains(), CharTokenizer(Chains().alphabet)
    problem = next(
        p for p in itertools.islice(task.problems("train"), 50) if p.prompt.count("+") + p.prompt.count("-") > 0
    )
    steps = problem.solution.split("#")[0].split(";")[:-1]
    wrong = [*steps]
    right = wrong[1][-1]
    wrong[1] = wrong[1][:-1] + str((int(right) + 1) % 10)
    response = np.array(tokenizer.encode(problem.solution), np.int32)
    start = len(steps[0]) + 1
    attempt = tokenizer.encode(wrong[1] + ";")
    drawn = [*response[:start], *attempt, *response[start:]]
    position = [*range(start), *range(start, start + len(attempt)), *range(start, len(response))]

    class Parts:
        pass

    class Segments:
        drawn_position, drawn_tokens, draws = np.array([position]), np.array([drawn]), np.array([len(drawn)])

    parts = Parts()
    parts.task, parts.tokenizer = task, tokenizer
    found = erasing._first_attempts(parts, problem, response, Segments, 0)
    assert found[0] == (False, False)
    assert found[1] == (True, True)
    assert not any(held or erased for held, erased in found[2:])
