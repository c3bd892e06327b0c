"""A model of one's own: from its directory through training and back into a directory."""

import json

import jax
import numpy as np
import pytest

from entropy_rl.model import Transformer, TransformerConfig, load_hf, read_hf_config, save_hf
from tests import runs

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow
CONFIG = TransformerConfig(
    vocab_size=300, num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=4, qkv_bias=True
)
CHAT = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("own")
    path = path / "model"
    save_hf(CONFIG, Transformer(CONFIG).init_params(jax.random.key(3)), path)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(alphabet))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<u>", "</u>"])
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": CHAT}))
    rows = [{"question": f"{i} plus {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(40)]
    (path.parent / "data" / "gsm8k").mkdir(parents=True)
    for split in ("train", "test"):
        (path.parent / "data" / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(directory, workdir):
    changes = {
        "steps": 2, "optimizer.warmup_steps": 0, "optimizer.learning_rate": 1e-3, "batch.prompts": 4,
        "batch.samples": 4, "batch.microbatches": 1, "sampling.max_prompt": 160, "sampling.max_response": 12,
        "eval.problems": 8, "eval.samples": 2, "eval.batch": 8, "eval.every": 0, "log.rollouts_every": 1,
        "task.options.directory": directory.parent / "data", "task.options.data_dir": workdir / "tfds",
    }  # fmt: skip
    return [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in changes.items())]


def test_trains_and_comes_back(directory, tmp_path, compilation_cache):
    workdir, out = tmp_path / "r", tmp_path / "out"
    config = f"--config=configs/grpo.py:{directory}"
    text = runs.run("train", config, *flags(directory, workdir), cache=compilation_cache)
    assert "8 held-out problems, steps 0 and 2" in text
    saved = runs.rollouts(workdir)
    assert all("Please reason step by step" in row["prompt"] for rows in saved.values() for row in rows)
    text = runs.run("export", f"--workdir={workdir}", f"--out={out}", cache=compilation_cache)
    assert text.startswith("step 2 of")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (directory / name).read_bytes()
    text = runs.run(
        "evaluate", f"--workdir={workdir}", "--benchmarks=gsm8k", "--num_samples=2", "--problems=6", "--batch=4",
        cache=compilation_cache,
    )  # fmt: skip
    assert "2 responses a problem, T=1" in text
    results = json.loads((workdir / "benchmarks" / "2" / "results.json").read_text())
    assert results["benchmarks"]["gsm8k"]["problems"] == 6
    assert results["settings"]["template"] == "boxed"
    got_config, got = load_hf(out)
    assert got_config == read_hf_config(directory)
    state = runs.final_state(workdir)[1]
    want = {k.removeprefix("['params']"): v for k, v in state.items() if k.startswith("['params']")}
    flat = jax.tree_util.tree_flatten_with_path(got)[0]
    assert len(flat) == len(want)
    for path, value in flat:
        np.testing.assert_array_equal(value, want[jax.tree_util.keystr(path)])
    start = load_hf(directory)[1]
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(start), strict=True))
    again = runs.run("export", f"--workdir={workdir}", f"--out={out}", "--step=base", cache=compilation_cache, expect=2)
    assert "is not empty" in again


def test_a_config_of_another_model_is_refused(directory, tmp_path, compilation_cache):
    arguments = [f"--config.base={directory}", f"--config.tokenizer.path={directory}", f"--workdir={tmp_path / 'r'}"]
    text = runs.run("train", "--config=configs/grpo.py", *arguments, cache=compilation_cache, expect=2)
    assert "config.model is not the model of" in text
    assert "--config=FILE.py:" in text
