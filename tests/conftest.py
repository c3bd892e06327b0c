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


# What compiled code does bit for bit, or with its memory, is tested as it is shipped; elsewhere compiling is most of
# the time, and code that is compiled fast serves.
OPTIMIZED = ("sampling_test", "erasing_test", "cache_test", "drawing_test", "llama2c_test", "linear_token_stats_test",
             "decode_attention_test")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def optimizations(request):
    """Switches most of XLA's optimizations off in modules that do not test what they do."""
    is_shipped = request.module.__name__.rpartition(".")[2] in OPTIMIZED
    jax.config.update("jax_disable_most_optimizations", not is_shipped)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
