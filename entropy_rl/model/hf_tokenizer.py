"""Tokenizers as Hugging Face directories hold them, and their chat templates.

Encoding is the ``tokenizers`` library's; what this file adds is which files to read and which ids start and end a text.
"""

import datetime
import json
import os
from collections.abc import Sequence
from typing import Any

from entropy_rl.model.tokenizer import SentencePieceTokenizer, Tokenizer

# How Qwen2 cuts text before its merges; its vocab.json and merges.txt do not say so.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SP_MARKS = ("<unk>", "<s>", "</s>", "<pad>")


def _read_json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None


def _content(token: Any) -> str | None:
    """The text of a token that a config names as text or as an object."""
    return token["content"] if isinstance(token, dict) else token


def _from_merges(path: str, options: dict[str, Any]) -> Any:
    """A Qwen2 tokenizer from vocab.json, merges.txt and its added tokens."""
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    kind = options.get("tokenizer_class", "")
    if not kind.startswith("Qwen2Tokenizer"):
        raise ValueError(
            f"{path} has vocab.json and merges.txt of a {kind or 'nameless class'}; without a tokenizer.json only "
            "those of Qwen2Tokenizer are read"
        )
    model = models.BPE.from_file(os.path.join(path, "vocab.json"), os.path.join(path, "merges.txt"))
    backend = Backend(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated")
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_level])
    backend.decoder = decoders.ByteLevel()
    added = {int(number): token for number, token in options.get("added_tokens_decoder", {}).items()}
    for text, number in _read_json(os.path.join(path, "added_tokens.json")).items():
        added.setdefault(number, {"content": text, "special": True})
    for number, token in sorted(added.items()):
        flags = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        entry = AddedToken(token["content"], special=bool(token.get("special", False)), **flags)
        (backend.add_special_tokens if token.get("special") else backend.add_tokens)([entry])
        if backend.token_to_id(token["content"]) != number:
            raise ValueError(f"{path}: the added token {token['content']!r} would not get its id {number}")
    return backend


class HFTokenizer:
    """A tokenizer.json, or Qwen2's vocab.json and merges.txt, with the marks its configs name.

    Special tokens in a text are read as such, as transformers does. ``bos_id`` is None where the tokenizer puts nothing
    before a text. ``stop_ids`` are all ids that end a response: the end mark, and those of generation_config.json.

    Args:
        path: a directory, or a tokenizer.json in one.
        chat: whether a prompt is a user's message in a conversation, by the chat template.
        system: that conversation's system message; "" leaves it to the template.

    Raises:
        ValueError: for files that are missing or of another kind, or where nothing names an end mark.
    """

    def __init__(self, path: str | os.PathLike, *, chat: bool = False, system: str = ""):
        from tokenizers import Tokenizer as Backend

        path = os.fspath(path)
        directory = path if os.path.isdir(path) else os.path.dirname(path)
        options = _read_json(os.path.join(directory, "tokenizer_config.json"))
        single = path if os.path.isfile(path) else os.path.join(directory, "tokenizer.json")
        if os.path.isfile(single):
            try:
                self._backend = Backend.from_file(single)
            except Exception as error:  # the library raises bare Exceptions
                raise ValueError(f"{single} is no tokenizer: {error}") from None
            self._backend.no_truncation()  # what a fine-tune left in the file
            self._backend.no_padding()
        elif os.path.isfile(os.path.join(directory, "merges.txt")):
            self._backend = _from_merges(directory, options)
        else:
            raise ValueError(f"{directory or '.'} has neither tokenizer.json nor vocab.json and merges.txt")
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        special = _read_json(os.path.join(directory, "special_tokens_map.json"))
        mark = lambda name: _content(options.get(name) or special.get(name))  # noqa: E731
        self._marks = {name: mark(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.stop_ids = self._stop_ids(directory)
        self.eos_id: int = self.stop_ids[0]
        self.bos_id = self._start_id()
        template = options.get("chat_template")
        if isinstance(template, list):  # several by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if os.path.isfile(separate := os.path.join(directory, "chat_template.jinja")):
            with open(separate) as file:
                template = file.read()
        self._template: str | None = template
        self._is_chat, self._system = chat, system
        if chat and template is None:
            raise ValueError(f"{path} has no chat template")

    def _stop_ids(self, directory: str) -> tuple[int, ...]:
        """The tokenizer's own, then generation_config.json's; config.json's only where there is neither."""
        mark = self._marks["eos_token"]
        found: list[Any] = [] if mark is None else [self._backend.token_to_id(mark)]
        if mark is not None and found[0] is None:
            raise ValueError(f"{directory}: the end mark {mark!r} is no token")
        for name in ("generation_config.json", "config.json"):
            stated = _read_json(os.path.join(directory, name)).get("eos_token_id")
            if name == "generation_config.json" or not found:
                found += stated if isinstance(stated, list) else [] if stated is None else [stated]
        if not found:
            raise ValueError(f"{directory} names no end mark: eos_token in tokenizer_config.json is missing")
        if wrong := [number for number in found if not 0 <= int(number) < self.vocab_size]:
            raise ValueError(f"{directory}: the end mark {wrong[0]} is not one of {self.vocab_size} ids")
        return tuple(dict.fromkeys(int(number) for number in found))

    def _start_id(self) -> int | None:
        """What the tokenizer itself puts before a text."""
        marked = self._backend.encode("a", add_special_tokens=True).ids
        bare = self._backend.encode("a", add_special_tokens=False).ids
        return marked[0] if len(marked) > len(bare) and marked[0] != bare[0] else None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, nothing added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of the conversation that asks ``text``; without one, of ``text`` behind the start mark, if any."""
        if self._is_chat:
            messages = [{"role": "system", "content": self._system}] if self._system else []
            return self.encode(self.chat([*messages, {"role": "user", "content": text}]))  # its marks are its own
        ids = self.encode(text)
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens and ids past the vocabulary give nothing."""
        return self._backend.decode([int(i) for i in ids if i < self.vocab_size], skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """What one id shows as in a transcript."""
        text = self._backend.decode([int(token)], skip_special_tokens=False) if token < self.vocab_size else ""
        return text or f"<{token}>"

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def chat(self, messages: Sequence[dict[str, str]], **variables: Any) -> str:
        """The conversation as text, up to where the assistant's answer begins.

        Args:
            messages: of "role" and "content".
            variables: more of what a template may read (``enable_thinking``).

        Raises:
            ValueError: where there is no template, or it refuses the conversation.
        """
        if self._template is None:
            raise ValueError("this tokenizer has no chat template")
        marks = {name: text for name, text in self._marks.items() if text is not None}
        return render_chat(self._template, messages, **marks, **variables)


def render_chat(template: str, messages: Sequence[dict[str, str]], **variables: Any) -> str:
    """A Jinja chat template, filled in a sandbox: it reaches what it is given, and changes nothing.

    Raises:
        ValueError: for a template that is wrong or refuses the conversation.
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the assistant's text for other uses; here it is text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str):
        raise jinja2.exceptions.TemplateError(message)

    # These arguments and no others: json.dumps takes functions too, which a template must not be able to hand over.
    def to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(
            value, ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        compiled = environment.from_string(template)
        given = {"tools": None, "documents": None} | variables
        return compiled.render(messages=list(messages), add_generation_prompt=True, **given)
    except Exception as error:  # whatever a template does wrong
        raise ValueError(f"the chat template does not take this conversation: {error}") from None


def _check_sentencepiece(directory: str) -> None:
    """Raises ValueError where a directory's configs say more than its tokenizer.model."""
    options = _read_json(os.path.join(directory, "tokenizer_config.json"))
    added = [token for token in options.get("added_tokens_decoder", {}).values() if _content(token) not in _SP_MARKS]
    added += list(_read_json(os.path.join(directory, "added_tokens.json")))
    if added or options.get("chat_template"):
        what = "added tokens" if added else "a chat template"
        raise ValueError(
            f"{directory} has {what} beside its tokenizer.model, but no tokenizer.json; make one: "
            f"AutoTokenizer.from_pretrained({directory!r}).save_pretrained({directory!r}) in transformers"
        )


def load_tokenizer(path: str | os.PathLike, *, chat: bool = False, system: str = "") -> Tokenizer:
    """The tokenizer at ``path``: a SentencePiece ``.model``, a ``tokenizer.json``, or a directory of either kind.

    Args:
        path: of a file or a directory.
        chat, system: see ``HFTokenizer``; SentencePiece models have no chat template.

    Raises:
        ValueError: where nothing is there that can be read, or a conversation is wanted without a template.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise ValueError(f"no tokenizer at {path}; experiments.train_tokenizer makes a SentencePiece model")
    if os.path.isdir(path) and not any(os.path.isfile(os.path.join(path, n)) for n in ("tokenizer.json", "merges.txt")):
        path = os.path.join(path, "tokenizer.model")
        if not os.path.isfile(path):
            directory = os.path.dirname(path)
            raise ValueError(f"{directory} has no tokenizer.json, no vocab.json and merges.txt, and no tokenizer.model")
        _check_sentencepiece(os.path.dirname(path))
    if not path.endswith(".model"):
        return HFTokenizer(path, chat=chat, system=system)
    if chat:
        raise ValueError(f"{path} is a SentencePiece model, which has no chat template")
    return SentencePieceTokenizer(path)
