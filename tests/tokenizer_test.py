"""SentencePiece: real models round-trip real text, a trained one keeps every character."""

import gzip
import json

import pytest

from entropy_rl.model.tokenizer import SentencePieceTokenizer, train_sentencepiece


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistral_models_round_trip_math500(data_dir, tmp_path, name):
    path = tmp_path / "m.model"
    path.write_bytes(gzip.decompress((data_dir / "tokenizers" / "mistral" / f"{name}.gz").read_bytes()))
    tokenizer = SentencePieceTokenizer(path)
    with open(data_dir / "math500" / "test.jsonl") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        for text in (row["problem"], row["solution"]):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size in (32000, 32768)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    texts = [f"What is {i} plus {i * 7 % 13}?\nIt is {i + i * 7 % 13}, of course.\n#### {i}" for i in range(800)]
    path = tmp_path_factory.mktemp("sp") / "small.model"
    return texts, train_sentencepiece(texts, path, vocab_size=320)


def test_trained_model_keeps_every_character(trained):
    texts, tokenizer = trained
    assert tokenizer.vocab_size == 320
    for text in [*texts[:50], "  two  spaces\n\n and a tab\t", "été 数学 🙂", "1,234.5"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (
        max(len(piece) for piece in map(tokenizer.piece, tokenizer.encode("1234567")) if piece.strip().isdigit()) == 1
    )
    marks = [tokenizer.bos_id, *tokenizer.encode("plus"), tokenizer.eos_id]
    assert tokenizer.decode(marks) == "plus"


def test_same_corpus_same_model(trained, tmp_path):
    texts, tokenizer = trained
    again = train_sentencepiece(texts, tmp_path / "again.model", vocab_size=320)
    assert [again.piece(i) for i in range(320)] == [tokenizer.piece(i) for i in range(320)]


def test_wrong_input(tmp_path):
    with pytest.raises(ValueError, match="no SentencePiece model at"):
        SentencePieceTokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_text("no model")
    with pytest.raises(ValueError, match="is no SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "bad.model")
    with pytest.raises(ValueError, match=r"ends in \.model"):
        train_sentencepiece(["a"], tmp_path / "x.bin", vocab_size=300)
    with pytest.raises(ValueError, match="could not train"):
        train_sentencepiece(["a b"], tmp_path / "x.model", vocab_size=5000)
