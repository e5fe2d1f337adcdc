"""The documentation builds as a site without a broken link, and the texts beside it point to what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
