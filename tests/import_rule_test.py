"""Imports run one way; library files read no config; every file is small enough to read."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A room may import rooms of a lower level, and files of its own room.
LEVELS = {
    "pallas_kernels": 0,
    "entropy_rl": 0,  # the package itself: its version
    "entropy_rl.types": 0,
    "entropy_rl.masked": 0,
    "entropy_rl.distributions": 0,
    "entropy_rl.schedules": 0,
    "entropy_rl.metrics": 0,
    "entropy_rl.methods": 1,
    "entropy_rl.objectives": 2,
    "entropy_rl.model": 1,
    "entropy_rl.verify": 1,
    "entropy_rl.parallel": 1,
    "entropy_rl.data": 2,
    "entropy_rl.rollout": 3,
    "entropy_rl.learner": 3,
    "entropy_rl.evaluate": 3,
    "entropy_rl.checkpoint": 3,
    "entropy_rl.report": 3,
    "configs": 4,
    "experiments": 5,
}
FILES = sorted(
    path for top in ("entropy_rl", "pallas_kernels", "configs", "experiments") for path in ROOT.glob(f"{top}/**/*.py")
)


def room(module: str) -> str | None:
    """The longest name in LEVELS that holds ``module``."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        if ".".join(parts[:size]) in LEVELS:
            return ".".join(parts[:size])
    return None


def imported(path: pathlib.Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def test_every_file_has_a_room():
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert room(module) is not None, f"{module} stands in no room of LEVELS"
        assert module.count(".") == 0 or room(module) != "entropy_rl", f"{module} stands in no room of LEVELS"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imported(path):
        other = room(module)
        if other is None or other == own or other == "entropy_rl":
            continue
        assert LEVELS[other] < LEVELS[own], f"{path.relative_to(ROOT)} ({own}) imports {module} ({other})"


def test_libraries_read_no_config():
    for path in FILES:
        if path.parts[len(ROOT.parts)] in ("entropy_rl", "pallas_kernels"):
            assert not any(module.startswith("ml_collections") for module in imported(path)), path


def test_rule_finds_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from experiments.train import train\n")
    assert LEVELS[room(next(iter(imported(wrong))))] > LEVELS["entropy_rl.model"]
