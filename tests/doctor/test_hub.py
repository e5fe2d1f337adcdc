"""The doctor on a model of the hub, of which no weight is fetched."""

import json
from pathlib import Path

import pytest

from bitwright.doctor.doctor import examine
from tests.doctor.broken import both, change, sound
from tests.hub import on_hub, stand_in


@pytest.mark.parametrize("broken", [False, True])
def test_the_same_is_found_there_as_here(tmp_path: Path, broken: bool) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    sound(directory)
    if broken:
        both(change("config.json", num_key_value_heads=3, dtype="float16"), change("tokenizer_config.json", pad_token=None))(
            directory
        )
        (directory / "old.bin").write_bytes(b"x")
        (directory / "model-00003-of-00003.safetensors").write_bytes(b"x" * 500_000)
    with stand_in() as hub:
        hub.published["me/model"] = {path.name: path.read_bytes() for path in directory.iterdir()}
        done = on_hub(hub.address, tmp_path / "home", "doctor", "me/model", "--json")
        missing = on_hub(hub.address, tmp_path / "home", "doctor", "me/other")
    here = examine(directory)
    assert len({finding.rule for finding in here}) == (5 if broken else 0)
    assert json.loads(done.stdout) == [finding.to_dict() for finding in here]
    assert done.returncode == (2 if broken else 0), done.stderr
    assert any(request.endswith("/tokenizer_config.json") for request in hub.requests)
    assert hub.n_sent < 20_000, "texts and headers"
    assert "error[source/hub]" in missing.stderr
