"""A model that sees without the files of its image processor.

The weights alone do not say how a picture becomes pixels: size, mean and deviation of colours, patches, the order of tiles.
Without `preprocessor_config.json` or `processor_config.json` AutoProcessor stops, and a model that is shown pictures made
in another way answers worse, without a word.

Source: https://huggingface.co/docs/transformers, `AutoProcessor`.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

FILES = ("preprocessor_config.json", "processor_config.json")


def check(model: Model) -> Iterator[Finding]:
    if model.config.get("vision_config") and not any(name in model.files for name in FILES):
        yield Finding(
            "files/no-processor",
            model.called,
            f"a model that sees, with neither {' nor '.join(FILES)}",
            "the settings of its image processor",
            "copy them from the original model",
            Severity.WARNING,
        )
