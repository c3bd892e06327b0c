"""Meshes and shardings: sizes that do not divide are refused with what to change."""

import jax
import numpy as np
import pytest

from entropy_rl.parallel import make_mesh, param_shardings, sampling_shardings
from entropy_rl.parallel.mesh import row_shards
from entropy_rl.parallel.multihost import gather_rows, is_main, local_rows, to_global
from tests.helpers import tiny_model


def test_axes():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert row_shards(mesh) == 4


@pytest.mark.parametrize(
    ("sizes", "words"), [({"data": 3}, "needs 3 devices, there are 8"), ({"tensor": 0}, "positive")]
)
def test_wrong_meshes(sizes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(**sizes)


def test_parameters_are_split_as_named():
    model, params = tiny_model()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    update = param_shardings(mesh, model.logical_axes(), params)["params"]
    sampling = sampling_shardings(mesh, model.logical_axes(), params)["params"]
    assert update["layers"]["query"]["kernel"].spec == jax.P(None, "fsdp", "tensor", None)
    assert sampling["layers"]["query"]["kernel"].spec == jax.P(None, None, "tensor", None)
    assert update["head"].spec == jax.P("fsdp", "tensor")
    big = params["params"]["layers"]["down"]["kernel"]
    placed = jax.device_put(big, update["layers"]["down"]["kernel"])
    assert placed.addressable_shards[0].data.size == big.size // 4


def test_sizes_that_do_not_divide():
    model, params = tiny_model(num_heads=3, num_kv_heads=3)
    with pytest.raises(ValueError, match="heads' of size 3 does not divide over mesh axis tensor=2"):
        param_shardings(make_mesh(tensor=2), model.logical_axes(), params)


def test_rows_of_one_process():
    mesh = make_mesh()
    rows = np.arange(16).reshape(8, 2)
    array = to_global(rows, jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    np.testing.assert_array_equal(local_rows(array), rows)
    np.testing.assert_array_equal(gather_rows(rows), rows)
    assert is_main()
