"""Weights as Hugging Face directories hold them: ``config.json`` and safetensors, in and out.

A directory's matrices are [outputs, inputs], one tensor per layer; ours are [layers, *inputs, *outputs]. Each shard of
each parameter is read for itself, by slices, so that a process never holds more than one of them beside the result.
"""

import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model.families import config_from_hf, config_to_hf
from entropy_rl.model.transformer import Transformer, TransformerConfig

_INDEX = "model.safetensors.index.json"
# What else a directory may hold that belongs to the model and not to its weights.
_COMPANIONS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
Path = tuple[str, ...]


class _Tensor(NamedTuple):
    """Where one of our parameters comes from.

    Attributes:
        name: of the tensor in the directory, with ``{layer}`` where there is one per layer.
        rows, columns: our axes behind the directory's two; no columns for vectors.
        transposed: ours has the columns' axes first.
    """

    name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...] = ()
    transposed: bool = True

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (math.prod(self.rows), math.prod(self.columns)) if self.columns else (math.prod(self.rows),)


def _tensors(config: TransformerConfig) -> dict[Path, _Tensor]:
    """Every parameter of the model, by its path."""
    c = config
    wide, narrow, embed, mlp = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim), (c.embed_dim,), (c.mlp_dim,)
    layer: dict[Path, _Tensor] = {
        ("attention_norm", "scale"): _Tensor("input_layernorm.weight", embed),
        ("mlp_norm", "scale"): _Tensor("post_attention_layernorm.weight", embed),
        ("query", "kernel"): _Tensor("self_attn.q_proj.weight", wide, embed),
        ("key", "kernel"): _Tensor("self_attn.k_proj.weight", narrow, embed),
        ("value", "kernel"): _Tensor("self_attn.v_proj.weight", narrow, embed),
        ("out", "kernel"): _Tensor("self_attn.o_proj.weight", embed, wide),
        ("gate", "kernel"): _Tensor("mlp.gate_proj.weight", mlp, embed),
        ("up", "kernel"): _Tensor("mlp.up_proj.weight", mlp, embed),
        ("down", "kernel"): _Tensor("mlp.down_proj.weight", embed, mlp),
    }
    if c.qkv_bias:
        layer[("query", "bias")] = _Tensor("self_attn.q_proj.bias", wide)
        layer[("key", "bias")] = _Tensor("self_attn.k_proj.bias", narrow)
        layer[("value", "bias")] = _Tensor("self_attn.v_proj.bias", narrow)
    if c.qk_norm:
        layer[("query_norm", "scale")] = _Tensor("self_attn.q_norm.weight", (c.head_dim,))
        layer[("key_norm", "scale")] = _Tensor("self_attn.k_norm.weight", (c.head_dim,))
    found: dict[Path, _Tensor] = {
        ("embed", "embedding"): _Tensor("model.embed_tokens.weight", (c.vocab_size,), embed, transposed=False),
        ("final_norm", "scale"): _Tensor("model.norm.weight", embed),
    }
    found |= {("layers", *path): t._replace(name=f"model.layers.{{layer}}.{t.name}") for path, t in layer.items()}
    if not c.tied_embeddings:
        found[("head",)] = _Tensor("lm_head.weight", (c.vocab_size,), embed)
    return found


def _flat_slice(index: tuple[slice, ...], axes: tuple[int, ...]) -> tuple[slice, tuple[slice, ...]]:
    """A slice of the flattened axes that covers ``index``, and the index into what it gives."""
    start, stop, _ = index[0].indices(axes[0])
    inner = math.prod(axes[1:])
    return slice(start * inner, stop * inner), (slice(None), *index[1:])


def _read(stored: Any, tensor: _Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """The part ``index`` of our parameter (of one layer) from a stored tensor's slices."""
    if not tensor.columns:
        rows, rest = _flat_slice(index, tensor.rows)
        return stored[rows].reshape(-1, *tensor.rows[1:])[rest]
    count = len(tensor.columns) if tensor.transposed else len(tensor.rows)
    first, second = index[:count], index[count:]
    row_index, column_index = (second, first) if tensor.transposed else (first, second)
    rows, row_rest = _flat_slice(row_index, tensor.rows)
    columns, column_rest = _flat_slice(column_index, tensor.columns)
    part = stored[rows, columns].reshape(-1, *tensor.rows[1:], _firsts(columns, tensor.columns), *tensor.columns[1:])
    part = part[(*row_rest, *column_rest)]
    if not tensor.transposed:
        return part
    split = len(tensor.rows)
    return np.transpose(part, (*range(split, part.ndim), *range(split)))


def _firsts(flat: slice, axes: tuple[int, ...]) -> int:
    """How many of the first of ``axes`` a slice of them, flattened, holds."""
    return (flat.stop - flat.start) // math.prod(axes[1:])


class _Directory:
    """The tensors of a directory by name, opened file by file; checked against what the model wants."""

    def __init__(self, path: str, wanted: dict[str, tuple[int, ...]], *, may_have: set[str]):
        from safetensors import SafetensorError, safe_open

        self._files = {}
        where: dict[str, str] = {}
        for name in _weight_files(path):
            try:
                self._files[name] = safe_open(os.path.join(path, name), "np")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{os.path.join(path, name)} cannot be read: {error}") from None
            where |= dict.fromkeys(self._files[name].keys(), name)
        if missing := sorted(wanted.keys() - where.keys()):
            raise ValueError(f"{path} lacks {_some(missing)}")
        ignored = {name for name in where if name.endswith("rotary_emb.inv_freq")} | may_have
        if extra := sorted(where.keys() - wanted.keys() - ignored):
            raise ValueError(f"{path} holds {_some(extra)}, which a model of its config.json does not have")
        self._where = where
        for name, shape in wanted.items():
            stored_type = self[name].get_dtype()
            if stored_type not in ("F32", "BF16", "F16"):
                raise ValueError(f"{path}: {name} is stored as {stored_type}, not as F32, BF16 or F16")
            if (stored := tuple(self._files[where[name]].get_slice(name).get_shape())) != shape:
                raise ValueError(f"{path}: {name} has shape {list(stored)}, its config.json asks for {list(shape)}")

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> Any:
        return self._files[self._where[name]].get_slice(name)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _weight_files(path: str) -> list[str]:
    """The safetensors files of a directory; ValueError says what else is there."""
    if os.path.isfile(os.path.join(path, "model.safetensors")):
        return ["model.safetensors"]
    index = os.path.join(path, _INDEX)
    if os.path.isfile(index):
        with open(index) as file:
            try:
                names = sorted(set(json.load(file)["weight_map"].values()))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{index} has no weight_map of tensors to files") from None
        if missing := [name for name in names if not os.path.isfile(os.path.join(path, name))]:
            raise ValueError(f"{path} lacks {_some(missing)}, which its {_INDEX} names")
        return names
    present = sorted(os.listdir(path))
    if pickled := [name for name in present if name.endswith((".bin", ".pt", ".pth"))]:
        raise ValueError(
            f"{path} has pickled weights ({_some(pickled)}), which can run code when they are read; convert them: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) in transformers writes safetensors"
        )
    raise ValueError(f"{path} has neither model.safetensors nor {_INDEX}")


def is_hf_directory(path: str | os.PathLike) -> bool:
    """Whether ``path`` has a config.json that names a model type, supported or not."""
    if not os.fspath(path):
        return False
    try:
        with open(os.path.join(path, "config.json")) as file:
            hf = json.load(file)
            return isinstance(hf, dict) and "model_type" in hf
    except (OSError, ValueError):
        return False


def read_hf_config(path: str | os.PathLike) -> TransformerConfig:
    """The config of a directory's ``config.json``; see ``config_from_hf`` for errors."""
    file_name = os.path.join(path, "config.json")
    if not os.path.isfile(file_name):
        raise ValueError(f"no config.json in {os.fspath(path)}")
    with open(file_name) as file:
        try:
            hf = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file_name} is no JSON: {error}") from None
    if not isinstance(hf, dict):
        raise ValueError(f"{file_name} holds no object")
    try:
        return config_from_hf(hf)
    except ValueError as error:
        raise ValueError(f"{file_name}: {error}") from None


def load_hf(
    path: str | os.PathLike, *, sharding: Any = None, dtype: str | None = None
) -> tuple[TransformerConfig, dict[str, Any]]:
    """Reads a directory of Hugging Face format.

    Args:
        path: holds config.json, and model.safetensors or its parts and their index.
        sharding: a tree of shardings like the parameters, one sharding for all, or a function of the ``Transformer``
            that gives either; None puts everything on the first device.
        dtype: of the parameters, "float32" or "bfloat16"; default as stored, f16 as float32.

    Returns:
        (config, params) for ``Transformer``. A process holds the parameters' shards of its own devices, and one more.

    Raises:
        ValueError: for a model type, an option or a format that is not supported, and for missing, extra or misshapen
            tensors, by name.
    """
    path = os.fspath(path)
    config = read_hf_config(path)
    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} is not float32 or bfloat16")
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    tensors = _tensors(config)
    model = Transformer(config)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))["params"]
    wanted = {
        tensor.name.format(layer=layer): tensor.stored_shape
        for tensor in tensors.values()
        for layer in range(config.num_layers)
    }
    directory = _Directory(path, wanted, may_have={"lm_head.weight"} if config.tied_embeddings else set())
    if config.tied_embeddings and "lm_head.weight" in directory:
        _check_tied(path, directory, config.vocab_size)
    if callable(sharding):
        sharding = sharding(model)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = {"params": jax.tree.map(lambda _: sharding, shapes)}

    def load(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct, target: jax.sharding.Sharding) -> jax.Array:
        names = tuple(key.key for key in path)
        return _load_parameter(directory, tensors[names], shape, target, is_stacked=names[0] == "layers")

    return config, {"params": jax.tree_util.tree_map_with_path(load, shapes, sharding["params"])}


def _check_tied(path: str, directory: _Directory, vocab_size: int) -> None:
    """Raises ValueError where a head is stored beside embeddings it is said to be, and is not."""
    head, embedding = directory["lm_head.weight"], directory["model.embed_tokens.weight"]
    for first in range(0, vocab_size, 4096):
        rows = slice(first, min(first + 4096, vocab_size))
        if not np.array_equal(head[rows], embedding[rows]):
            raise ValueError(
                f"{path} ties its embeddings but stores another lm_head.weight; set tie_word_embeddings to false in "
                "its config.json, or remove the tensor"
            )


def _load_parameter(
    directory: _Directory, tensor: _Tensor, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, *,
    is_stacked: bool,
) -> jax.Array:  # fmt: skip
    """One parameter, shard by shard."""

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        if not is_stacked:
            return np.asarray(_read(directory[tensor.name], tensor, index)).astype(shape.dtype, copy=False)
        layers = range(*index[0].indices(shape.shape[0]))
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape.shape, strict=True)]
        part = np.empty(sizes, shape.dtype)
        for place, layer in enumerate(layers):
            part[place] = _read(directory[tensor.name.format(layer=layer)], tensor, index[1:])
        return part

    by_index: dict[str, list[Any]] = {}
    places = sharding.addressable_devices_indices_map(shape.shape)
    for device, index in places.items():
        by_index.setdefault(str(index), []).append((device, index))
    pieces = {}
    for group in by_index.values():
        part = shard(group[0][1])
        for device, _ in group:
            pieces[device] = jax.device_put(part, device)
        jax.block_until_ready(list(pieces.values()))
        del part
    return jax.make_array_from_single_device_arrays(shape.shape, sharding, [pieces[d] for d in places])


def _stored(config: TransformerConfig, params: Any) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """(name, shape, function that fetches it) of every tensor of a directory, in the order of layers."""

    def fetch(leaf: Any, tensor: _Tensor, layer: int | None) -> np.ndarray:
        part = leaf if layer is None else leaf[layer]
        if isinstance(part, jax.Array) and not part.is_fully_addressable:
            from jax.experimental import multihost_utils

            part = multihost_utils.process_allgather(part, tiled=True)
        part = np.asarray(part)
        if tensor.columns and tensor.transposed:
            split = len(tensor.columns)
            part = np.transpose(part, (*range(split, part.ndim), *range(split)))
        return np.ascontiguousarray(part.reshape(tensor.stored_shape))

    tensors = _tensors(config)
    for layer in (None, *range(config.num_layers)):
        for path, tensor in tensors.items():
            if (path[0] == "layers") != (layer is not None):
                continue
            leaf = params["params"]
            for key in path:
                leaf = leaf[key]
            yield tensor.name.format(layer=layer), tensor.stored_shape, functools.partial(fetch, leaf, tensor, layer)


def save_hf(
    config: TransformerConfig,
    params: Any,
    path: str | os.PathLike,
    *,
    like: str | os.PathLike | None = None,
    max_file_bytes: int = 2 << 30,
) -> None:
    """Writes a directory that transformers opens, and ``load_hf``.

    Args:
        config, params: of the model; parameters are written in their own dtype.
        path: of the directory; made where it is not there.
        like: the directory the model came from, whose config.json (other fields are kept) and tokenizer files are
            taken over; None writes a config.json of the closest family.
        max_file_bytes: of one safetensors file; what a process holds in memory while it writes.

    Raises:
        ValueError: for options no family has, where ``like`` holds another architecture, or ``path`` something already.
    """
    from safetensors.numpy import save_file

    path = os.fspath(path)
    if os.path.isdir(path) and (there := os.listdir(path)):
        raise ValueError(f"{path} is not empty ({_some(sorted(there))}); choose another directory")
    if like is None:
        hf = config_to_hf(config)
    else:
        same: Any = dict(dtype=config.dtype, param_dtype=config.param_dtype, remat=config.remat)
        if dataclasses.replace(read_hf_config(like), **same) != config:
            raise ValueError(f"the model's config is not that of {os.fspath(like)}")
        with open(os.path.join(like, "config.json")) as file:
            hf = json.load(file)
    leaf_dtype = jax.tree.leaves(params)[0].dtype
    hf["dtype" if "dtype" in hf else "torch_dtype"] = jnp.dtype(leaf_dtype).name
    size = lambda shape: math.prod(shape) * leaf_dtype.itemsize  # noqa: E731
    files: list[list[Any]] = [[]]
    for entry in _stored(config, params):
        if files[-1] and sum(size(shape) for _, shape, _ in files[-1]) + size(entry[1]) > max_file_bytes:
            files.append([])
        files[-1].append(entry)
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    names = ["model.safetensors"] if len(files) == 1 else names
    is_main = jax.process_index() == 0
    path, whole = f"{path.rstrip(os.sep)}.partial", path  # renamed when it is whole
    if is_main:
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
    for name, entries in zip(names, files, strict=True):
        arrays = {tensor: fetch() for tensor, _, fetch in entries}
        if is_main:
            save_file(arrays, os.path.join(path, name), metadata={"format": "pt"})
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(os.path.join(path, name), 0o666 & ~mask)  # the library's files are their owner's alone
        del arrays
    if not is_main:
        return
    if len(files) > 1:
        weight_map = {tensor: name for name, entries in zip(names, files, strict=True) for tensor, _, _ in entries}
        total = sum(size(shape) for entries in files for _, shape, _ in entries)
        _write_json(os.path.join(path, _INDEX), {"metadata": {"total_size": total}, "weight_map": weight_map})
    for name in _COMPANIONS if like is not None else ():
        if os.path.isfile(source := os.path.join(like, name)):  # type: ignore[arg-type]
            shutil.copy(source, os.path.join(path, name))
    _write_json(os.path.join(path, "config.json"), hf)
    os.replace(path, whole)


def _write_json(path: str, value: Any) -> None:
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
