"""Rows of data files: JSON lines, JSON arrays and Parquet, each also as .gz; what is wrong is named by file and row."""

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator


def read_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
    """(row number from 1, row) of a .jsonl, .json (lines, or one array of objects) or .parquet file, each also as .gz.

    Raises:
        ValueError: naming the file and, for a row that is no JSON object, its number.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"no data file at {path}")
    try:
        yield from _read_rows(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _read_rows(path: str) -> Iterator[tuple[int, dict]]:
    plain = path.removesuffix(".gz")
    if plain.endswith(".parquet"):
        import pyarrow.parquet

        number = 0
        with gzip.open(path) if plain != path else open(path, "rb") as file:
            try:
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
            except pyarrow.ArrowException as error:
                raise ValueError(f"{path} is no Parquet file: {error}") from None
    elif plain.endswith(".json") and (whole := _whole_json(path)) is not None:
        for number, row in enumerate(whole, start=1):
            if not isinstance(row, dict):
                raise ValueError(f"{path} row {number} is a {type(row).__name__}, not an object with fields")
            yield number, row
    elif plain.endswith((".jsonl", ".json")):
        with gzip.open(path) if plain != path else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path} row {number} is no JSON: {error.msg}, character {error.pos + 1}"
                    ) from None
                except UnicodeDecodeError as error:
                    raise ValueError(f"{path} row {number} is no UTF-8: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path} row {number} is a {type(row).__name__}, not an object with fields")
                yield number, row
    else:
        raise ValueError(f"{path} ends in none of .jsonl, .json and .parquet (or one of these with .gz)")


def _whole_json(path: str) -> list | None:
    """The rows of a file that is one JSON array or object; None for one object a line, or what is no JSON at all."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        try:
            found = json.load(file)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":
                return None
            file.seek(0)
            if file.read(1 << 12).lstrip()[:1] == "[":
                raise ValueError(f"{path} is no JSON: {error.msg}, line {error.lineno}") from None
            return None
    return found if isinstance(found, list) else [found]


def writable(text: str) -> bool:
    """Whether a text can be stored: half a surrogate pair, which JSON may hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_field(path: str, number: int, row: dict, field: str) -> str:
    """``row[field]`` as text; ValueError names file, row and what is wrong."""
    if field not in row:
        raise ValueError(f"{path} row {number} has no field {field!r}; it has {', '.join(sorted(row))}")
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{path} row {number} field {field!r} is a {type(value).__name__}, not text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} row {number} field {field!r} is {value}, not a number")
    text = str(value).strip()
    if not text:
        raise ValueError(f"{path} row {number} field {field!r} is empty")
    if not writable(text):
        raise ValueError(f"{path} row {number} field {field!r} holds half a surrogate pair, which is no text")
    return text
