"""The files of a checkpoint as the checks see them: each parsed once, on first use (no torch, no weight read)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from bitwright.checkpoint.headers import INDEX_NAME, TensorRef, read_headers
from bitwright.errors import BitwrightError, Finding
from bitwright.host.texts import UnreadableError, read_object
from bitwright.models.settings import text_config

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}

WRAPPERS = ("model", "language_model", "vision_model")  # of which classes that see have some, and their checkpoints others

Correction = dict[str, dict[str, Any] | None]  # file -> its new JSON object; None: it is left out


class Model:
    """A model directory. What cannot be read counts as empty, and stands in ``unreadable``.

    ``remote``: the tensor headers and the names of all files of a model on the hub, of which ``directory`` holds the texts;
    ``called``: its name there. ``corrected``: files that count as if they were so.
    """

    def __init__(
        self,
        directory: Path,
        remote: tuple[dict[str, TensorRef], Iterable[str]] | None = None,
        called: str = "",
        corrected: Correction | None = None,
    ) -> None:
        self.directory = directory
        self.unreadable: list[Finding] = []
        self.called = called or directory.absolute().name
        self._remote, self._corrected = remote, corrected or {}

    @cached_property
    def files(self) -> list[str]:
        """Names of the model's files."""
        if self._remote is not None:
            return sorted(name for name in self._remote[1] if "/" not in name)  # as a directory is listed
        return sorted(path.name for path in self.directory.iterdir()) if self.directory.is_dir() else []

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in ``name``; empty where there is no such file."""
        if name in self._corrected:
            return self._corrected[name] or {}
        path = self.directory / name
        if not path.is_file():
            return {}
        try:
            return read_object(path)
        except UnreadableError as error:
            self._note(name, str(error))
            return {}

    def _note(self, name: str, saw: str) -> None:
        self.unreadable.append(Finding("files/json", name, saw, "a JSON object", f"download {name} again"))

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.json("config.json")

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """Settings of the language model, which stand in a part of their own in models that also see."""
        part = self.config.get("text_config")
        return {**self.config, **part} if isinstance(part, dict) else self.config

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Those of the language model with whatever its class fills in."""
        return text_config(self.config)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the weights were quantized, as config.json says."""
        said = self.config.get("quantization_config")
        return said if isinstance(said, dict) else None

    @cached_property
    def generation(self) -> dict[str, Any]:
        return self.json("generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        return self.json("tokenizer_config.json")

    @cached_property
    def special_tokens(self) -> dict[str, Any]:
        return self.json("special_tokens_map.json")

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        return self.json("tokenizer.json")

    @cached_property
    def index(self) -> dict[str, Any]:
        return self.json(INDEX_NAME)

    @cached_property
    def refs(self) -> dict[str, TensorRef]:
        """Tensor headers; empty, with the reason in ``unreadable``, where they are not sound."""
        if self._remote is not None:
            return self._remote[0]
        try:
            return read_headers(self.directory)
        except BitwrightError as error:
            self.unreadable.append(error.finding)
        except OSError as error:
            self.unreadable.append(_closed(error))
        return {}

    @cached_property
    def template(self) -> str | None:
        """The chat template, from its own file or the tokenizer's settings."""
        path = self.directory / "chat_template.jinja"
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                self.unreadable.append(_closed(error))
        inline = self.tokenizer_config.get("chat_template") or self.json("chat_template.json").get("chat_template")
        if isinstance(inline, list):  # several, by name
            inline = next((part.get("template") for part in dicts_of(inline) if part.get("name") == "default"), None)
        return inline if isinstance(inline, str) else None

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """Every token of tokenizer.json with its id, added ones included."""
        core = self.tokenizer.get("model")
        vocab = core.get("vocab") if isinstance(core, dict) else None
        ids: dict[str, int] = {}
        if isinstance(vocab, dict):
            ids |= {token: id for token, id in vocab.items() if isinstance(id, int)}
        elif isinstance(vocab, list):  # Unigram: [token, score] in the order of ids
            ids |= {part[0]: i for i, part in enumerate(vocab) if isinstance(part, list) and part and isinstance(part[0], str)}
        return ids | {token["content"]: token["id"] for token in self.added_tokens}

    @cached_property
    def added_tokens(self) -> list[dict[str, Any]]:
        """The entries of tokenizer.json that have a text and an id."""
        return [
            token
            for token in dicts_of(self.tokenizer.get("added_tokens"))
            if isinstance(token.get("id"), int) and isinstance(token.get("content"), str)
        ]

    def token(self, kind: str) -> str | None:
        """The text of the ``bos``, ``eos`` or ``pad`` token."""
        for settings in (self.tokenizer_config, self.special_tokens):
            value = settings.get(f"{kind}_token")
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
        return None

    def adds(self, token: str) -> bool:
        """Whether the tokenizer puts ``token`` before a text by itself."""
        return bool(self.tokenizer_config.get("add_bos_token")) or self.begins(token)

    def begins(self, token: str) -> bool:
        """Whether tokenizer.json puts ``token`` before a text."""
        return _adds(self.tokenizer.get("post_processor"), token, 0)

    def ends(self, token: str) -> bool:
        """Whether tokenizer.json puts ``token`` after a text."""
        return _adds(self.tokenizer.get("post_processor"), token, -1)

    @cached_property
    def name(self) -> str:
        """What the model is called, in small letters, without its owner."""
        return str(self.config.get("_name_or_path") or self.called).lower().rstrip("/").rsplit("/", 1)[-1]

    @property
    def speaks(self) -> bool:
        """Whether the model generates text, by the names of its classes."""
        architectures = self.config.get("architectures")
        return isinstance(architectures, list) and any(
            "CausalLM" in str(name) or "Generation" in str(name) for name in architectures
        )

    @cached_property
    def usual_dtype(self) -> str | None:
        """The number format of most bytes of the matrices, as config.json calls it; None where it is no such format."""
        stored: Counter[str] = Counter()
        for ref in self.refs.values():
            if len(ref.shape) >= 2:
                stored[ref.dtype] += ref.nbytes
        usual = stored.most_common(1)[0][0] if stored else None
        return next((name for name, code in DTYPES.items() if code == usual), None)

    @property
    def embedding(self) -> TensorRef | None:
        return self._ending(EMBEDDINGS)

    @property
    def head(self) -> TensorRef | None:
        return self._ending(HEADS)

    def _ending(self, names: tuple[str, ...]) -> TensorRef | None:
        matrices = ((name, ref) for name, ref in self.refs.items() if len(ref.shape) == 2)
        found = (ref for name, ref in matrices for end in names if name == end or name.endswith(f".{end}"))
        return next(found, None)

    @property
    def ties_embeddings(self) -> bool:
        """Whether head and embedding are one matrix, as transformers decides it."""
        own = self.config.get("tie_word_embeddings")
        return bool(self.settings.get("tie_word_embeddings", True) if own is None else own)


def _adds(processor: Any, token: str, place: int) -> bool:
    """Whether a post-processor of tokenizer.json puts ``token`` at the ``place``, first or last, of a single text."""
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence":
        return any(_adds(part, token, place) for part in dicts_of(processor.get("processors")))
    if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        added = processor.get("sep" if place else "cls")
        return isinstance(added, list) and bool(added) and added[0] == token
    single = processor.get("single")
    outer = single[place] if isinstance(single, list) and single else None
    special = outer.get("SpecialToken") if isinstance(outer, dict) else None
    return isinstance(special, dict) and special.get("id") == token


def _closed(error: OSError) -> Finding:
    """A file that is there and cannot be read."""
    where = Path(str(error.filename or "")).name or "the model directory"
    return Finding(
        "files/closed", where, type(error).__name__, "a file that can be read", "correct its rights, or download it again"
    )


def dicts_of(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; none where ``value`` is no list."""
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def ids_of(value: Any) -> list[int]:
    """Token ids of a setting that may be one, several or none."""
    return [id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int) and not isinstance(id, bool)]


def bare(module: str) -> str:
    """``module`` without what differs between the names of a checkpoint and those of the class that loads it.

    >>> bare("model.language_model.layers.0.mlp"), bare("language_model.model.layers.0.mlp")
    ('layers.0.mlp', 'layers.0.mlp')
    """
    return ".".join(part for part in module.split(".") if part not in WRAPPERS)
