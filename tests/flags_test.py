"""The command line's own work."""

import jax
import pytest

from experiments.flags import keep_compiled


@pytest.fixture
def cache_dir():
    """Puts JAX's own setting back."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_where_the_user_says(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    before = cache_dir()
    keep_compiled()
    assert cache_dir() == before
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_compiled()
    assert cache_dir() == str(tmp_path / "entropy_rl" / "compiled")
