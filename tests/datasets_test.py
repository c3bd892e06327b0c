"""Files to problems: every format, bad rows named, streams that resume and share."""

import gzip
import json

import numpy as np
import pytest

from entropy_rl.data.batching import encode_demonstrations, encode_prompts, shorter_than
from entropy_rl.data.datasets import FileTask, ProblemFiles
from entropy_rl.data.rows import read_rows
from entropy_rl.data.streams import ProblemStream
from entropy_rl.data.tasks import Chains, Countdown, Problem
from entropy_rl.model.tokenizer import CharTokenizer

ROWS = [{"problem": f"{i} + 1 = {{?}}", "answer": i + 1, "how": f"{i} and one"} for i in range(7)]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if str(path).endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_formats(tmp_path, name):
    path = (write_parquet if name.endswith("parquet") else write)(tmp_path / name, ROWS)
    builder = ProblemFiles(paths={"train": path}, solution_field="how", data_dir=str(tmp_path / "tfds"))
    task = FileTask(builder, template="Q: {problem}\nA:")
    problems = task.problems("train")
    assert len(problems) == 7
    assert problems[3] == Problem(3, "Q: 3 + 1 = {?}\nA:", "4", "3 and one")
    assert [p.id for p in problems[2:5]] == [2, 3, 4]
    assert task.reward(problems[3], "so #### 4") == 1.0
    assert task.reward(problems[3], "so 4") == 0.0
    assert task.demonstration(problems[0], 0) == "0 and one"
    with pytest.raises(ValueError, match="no split 'test'"):
        task.problems("test")


def test_changed_file_is_prepared_anew(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    make = lambda: FileTask(ProblemFiles(paths={"train": path}, data_dir=str(tmp_path / "tfds"))).problems("train")
    assert len(make()) == 7
    write(tmp_path / "a.jsonl", [*ROWS, ROWS[0]])
    assert len(make()) == 8


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "a.jsonl row 3 is no JSON"),
        ("[1, 2]", "a.jsonl row 3 is a list"),
        ('{"problem": "x"}', "a.jsonl row 3 has no field 'answer'; it has problem"),
        ('{"problem": "", "answer": "1"}', "a.jsonl row 3 field 'problem' is empty"),
        ('{"problem": "x", "answer": null}', "a.jsonl row 3 field 'answer' is a NoneType"),
        ('{"problem": "x", "answer": ["1"]}', "a.jsonl row 3 field 'answer' is a list"),
    ],
)
def test_bad_row_is_named(tmp_path, row, words):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "x", "answer": "1"}\n\n' + row + "\n")
    with pytest.raises(ValueError, match=words):
        FileTask(ProblemFiles(paths={"train": str(path)}, data_dir=str(tmp_path / "tfds")))


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="no data file at"):
        list(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError, match="ends in none"):
        list(read_rows(tmp_path / "a.csv"))
    (tmp_path / "a.parquet").write_text("nothing")
    with pytest.raises(ValueError, match="no Parquet file"):
        list(read_rows(tmp_path / "a.parquet"))
    (tmp_path / "a.jsonl.gz").write_text("nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


def ids(batches):
    return [p.id for batch in batches for p in batch]


def test_stream_covers_every_pass_and_reshuffles():
    problems = Chains(size=50).problems("train")
    stream = ProblemStream(problems, batch_size=10, seed=3)
    first, second = ids(stream.next_batch() for _ in range(5)), ids(stream.next_batch() for _ in range(5))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))
    other = ProblemStream(problems, batch_size=10, seed=4)
    assert ids(other.next_batch() for _ in range(5)) != first


def test_stream_resumes_at_any_element():
    problems = Chains(size=37).problems("train")
    whole = ProblemStream(problems, batch_size=4, seed=0)
    batches = [whole.next_batch() for _ in range(30)]
    for done in (0, 1, 9, 17, 29):
        part = ProblemStream(problems, batch_size=4, seed=0)
        part.restore(json.loads(json.dumps({"position": 4 * done})))
        assert ids([part.peek()]) == ids([batches[done]])
        assert ids([part.next_batch()]) == ids([batches[done]])
        assert part.state() == {"position": 4 * (done + 1)}


def test_processes_share_one_order():
    problems = Chains(size=37).problems("train")
    whole = ProblemStream(problems, batch_size=8, seed=0)
    parts = [ProblemStream(problems, batch_size=8, seed=0, process_index=i, process_count=4) for i in range(4)]
    for _ in range(12):
        assert ids([whole.next_batch()]) == ids(part.next_batch() for part in parts)
    with pytest.raises(ValueError, match="does not divide over 3 processes"):
        ProblemStream(problems, batch_size=8, seed=0, process_count=3)


def test_prompts_and_demonstrations_as_arrays():
    tokenizer = CharTokenizer("01+?#;=")

    problems = [Problem(4, "0?", "0", "#0"), Problem(9, "1+0?", "1", "1+0=1;#1")]
    batch = encode_prompts(problems, tokenizer, 6)
    assert batch.tokens.tolist() == [[1, 3, 6, 0, 0, 0], [1, 4, 5, 3, 6, 0]]
    assert batch.length.tolist() == [3, 5]
    assert batch.ids.tolist() == [4, 9]
    with pytest.raises(ValueError, match="problem 9 has 5 tokens, max_prompt is 4"):
        encode_prompts(problems, tokenizer, 4)
    assert shorter_than(problems, tokenizer, 4) == [0]
    rows = encode_demonstrations(problems, Countdown(), tokenizer, max_length=8, seed=0)
    assert rows.tokens.tolist() == [[1, 3, 6, 7, 3, 2, 0, 0], [1, 4, 5, 3, 6, 4, 5, 3]]  # the second is cut
    assert rows.response_mask.astype(int).tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    whole = encode_demonstrations(problems, Countdown(), tokenizer, max_length=8, seed=0, learn_prompt=True)
    assert whole.loss_mask.astype(int).tolist() == [[0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1]]
    assert np.all(whole.prompt_length == 1)


def test_copies_of_a_problem_in_one_batch_count_rounds():
    tokenizer = CharTokenizer("01+?")
    batch = encode_prompts([Problem(i, "0?", "0") for i in (7, 3, 7, 7)], tokenizer, 6)
    assert batch.round.tolist() == [0, 0, 1, 2]
