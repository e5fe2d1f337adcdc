"""The documentation builds as a site without a broken link, and the texts beside it point to what is there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import NOISE

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
BESIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")


def test_every_page_and_anchor_that_is_linked_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "kept")]
    done = subprocess.run([*command, "docs", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        loaded = re.findall(r'(?:<script[^>]* src|<link[^>]* href|<img[^>]* src)="(https?://[^"]+)"', page.read_text("utf-8"))
        assert not loaded, f"{page.name} loads {loaded} from elsewhere"


@pytest.mark.parametrize("name", BESIDE)
def test_links_beside_the_site_lead_somewhere(name: str) -> None:
    targets = [target for target in LINK.findall((ROOT / name).read_text("utf-8")) if "://" not in target]
    assert all((ROOT / target).exists() for target in targets), targets


def test_every_term_of_the_report_is_in_the_glossary() -> None:
    from bitwright.report.words import TERMS

    glossary = (ROOT / "docs" / "glossary.md").read_text("utf-8").lower()
    missing = [term for term in TERMS if term.lower() not in glossary]
    assert not missing, missing


def test_the_notebook_was_run_and_nothing_of_libraries_is_in_it() -> None:
    cells = json.loads((ROOT / "examples" / "quantize.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "make notebook"
    shown = "".join("".join(output.get("text", [])) for cell in code for output in cell["outputs"])
    assert all(output["output_type"] == "stream" and output["name"] == "stdout" for cell in code for output in cell["outputs"])
    assert not [word for word in NOISE if word in shown]
    for cell in code:
        compile("".join(cell["source"]), "cell", "exec")


def test_the_transcript_is_of_the_page_and_fits_a_terminal() -> None:
    text = (ROOT / "docs" / "transcript.md").read_text("utf-8")
    shown = text.split("```")[1]
    assert not [word for word in NOISE if word in shown]
    assert all(len(line) <= 80 for line in shown.splitlines())
    page = (ROOT / "docs" / "first-hour.md").read_text("utf-8")
    for command in ("pip install -q torch==2.13.0", "bitwright quantize demo demo-out"):
        assert f"$ {command}" in shown
        assert command in page
