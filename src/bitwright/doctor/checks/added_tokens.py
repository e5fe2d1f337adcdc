"""Settings that promise a token which tokenizer.json does not add.

`add_bos_token` and `add_eos_token` in tokenizer_config.json were obeyed by transformers 4 and are overruled by
tokenizer.json in 5. Where the two disagree, a text begins or ends otherwise from one release to the next; models that
embed a text by its last token lose it.

Source: https://github.com/embeddings-benchmark/mteb/pull/5237;
https://github.com/huggingface/transformers/issues/30947.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity


def check(model: Model) -> Iterator[Finding]:
    if not isinstance(model.tokenizer.get("post_processor"), dict):  # without one, both releases obey the settings
        return
    for kind, adds in (("bos", model.begins), ("eos", model.ends)):
        token = model.token(kind)
        if model.tokenizer_config.get(f"add_{kind}_token") is True and token and not adds(token):
            yield Finding(
                "tokenizer/added-tokens",
                "tokenizer_config.json",
                f"add_{kind}_token, tokenizer.json adds no {token!r}",
                "the two agree",
                f"put {token!r} into the post_processor of tokenizer.json, or drop the setting",
                Severity.WARNING,
            )
