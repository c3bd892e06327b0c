"""Eight host devices, no silent rank promotion, shapes and types of every call checked, data where it is."""

import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
_hook = install_import_hook(["entropy_rl", "pallas_kernels"], "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Real data: $ENTROPY_RL_DATA, else ../shared/data beside the checkout; skips where neither is there."""
    path = pathlib.Path(os.environ.get("ENTROPY_RL_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data at {path}; set ENTROPY_RL_DATA")
    return path


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory) -> str:
    """A compilation cache that the runs of one session share."""
    return str(tmp_path_factory.mktemp("compilation_cache"))
