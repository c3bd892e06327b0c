"""Hugging Face tokenizers: known ids, exact round trips of real text, and templates in a sandbox."""

import gzip
import json
import shutil

import pytest

from entropy_rl.model.hf_tokenizer import HFTokenizer, load_tokenizer, render_chat
from entropy_rl.model.tokenizer import SentencePieceTokenizer

pytest.importorskip("tokenizers")
ODD = [
    "",
    " ",
    "\n\n \t x",
    "a\u0301 é",
    "𝔘𝔫𝔦 ١٢٣ ４２",
    "😀👩‍👩‍👧",
    "\u200b\u2060zero",
    "<|im_end|> in text",
    "'S don'T",
    "12345 1,234.5\r\n",
]


@pytest.fixture(scope="session")
def qwen2(data_dir, tmp_path_factory):
    """The directory as published."""
    target = tmp_path_factory.mktemp("qwen2")
    for source in (data_dir / "tokenizers" / "qwen2").iterdir():
        if source.suffix == ".gz":
            (target / source.stem).write_bytes(gzip.decompress(source.read_bytes()))
        else:
            shutil.copy(source, target)
    return target


def texts(data_dir):
    with open(data_dir / "math500" / "test.jsonl") as file:
        rows = [json.loads(line) for line in file]
    with gzip.open(data_dir / "gsm8k" / "test.jsonl.gz", "rt") as file:
        rows += [json.loads(line) for line in file]
    return [row[name] for row in rows for name in ("problem", "solution", "question", "answer") if name in row]


def test_qwen2(qwen2, data_dir):
    tokenizer = load_tokenizer(qwen2)
    assert tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert tokenizer.vocab_size == 151_646
    assert tokenizer.bos_id is None
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (151_645, (151_645, 151_643))
    for text in texts(data_dir):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_end|>") == [151_645]
    assert tokenizer.decode([9707, 151_645, 151_900]) == "Hello"
    assert (tokenizer.piece(9707), tokenizer.piece(151_645), tokenizer.piece(200_000)) == (
        "Hello", "<|im_end|>", "<200000>")  # fmt: skip
    chat = tokenizer.chat([{"role": "user", "content": "2+2?"}])
    assert chat.endswith("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.prompt_ids("Hello") == [9707]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "minimind"])
def test_same_as_transformers(name, qwen2, data_dir):
    transformers = pytest.importorskip("transformers")
    path = qwen2 if name == "qwen2" else data_dir / "tokenizers" / name
    ours, theirs = HFTokenizer(path), transformers.AutoTokenizer.from_pretrained(path)
    for text in [*texts(data_dir), *ODD]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.eos_id == theirs.eos_token_id
    conversations = [
        [{"role": "user", "content": "What is $\\frac{1}{2}+1$?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b> & 'x'"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ]
    for messages in conversations:
        want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.chat(messages) == want


def test_a_start_mark_is_put_once(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="names no end mark"):
        HFTokenizer(tmp_path)
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": "{{ bos_token }} {{ messages[0].content }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.prompt_ids("a b") == [0, 2, 3]
    assert load_tokenizer(tmp_path, chat=True).prompt_ids("a") == [0, 2]
    config["chat_template"] = "{{ messages[0].content }}"  # without a start mark: none is put there
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path, chat=True).prompt_ids("a") == [2]

    backend.enable_truncation(2)
    backend.enable_padding(length=7)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a b a b") == [2, 3, 2, 3]
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))  # not asked where the tokenizer says it
    assert load_tokenizer(tmp_path).stop_ids == (1,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 1]}))
    assert load_tokenizer(tmp_path).stop_ids == (1, 3)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 99}))
    with pytest.raises(ValueError, match="the end mark 99 is not one of 5 ids"):
        load_tokenizer(tmp_path)


def test_templates_are_sandboxed():
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="does not take this conversation"):
        render_chat("{{ messages.__class__.__mro__ }}", messages)
    with pytest.raises(ValueError, match="unsafe"):
        render_chat("{{ messages.append(1) }}", messages)
    with pytest.raises(ValueError, match="no system role here"):
        render_chat("{{ raise_exception('no system role here') }}", messages)
    for wrong in ("{% if %}", "{{ 1 / 0 }}", "{{ none.x.y }}"):
        with pytest.raises(ValueError, match="does not take this conversation"):
            render_chat(wrong, messages)
    with pytest.raises(ValueError, match="unexpected keyword argument 'default'"):
        render_chat("{{ messages | tojson(default='{}'.format) }}", messages)
    given = "{% generation %}{{ tools is none and documents is none }}{% endgeneration %}{{ 1 | tojson(false, 4) }}"
    assert render_chat(given, messages) == "True1"


def test_wrong_input(tmp_path, data_dir):
    with pytest.raises(ValueError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json, no vocab\.json"):
        load_tokenizer(tmp_path)
    raw = gzip.decompress((data_dir / "tokenizers" / "mistral" / "tokenizer.model.v1.gz").read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(raw)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 32000}))
    with pytest.raises(ValueError, match=r"has added tokens beside its tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(ValueError, match="of a GPT2Tokenizer"):
        load_tokenizer(tmp_path)
