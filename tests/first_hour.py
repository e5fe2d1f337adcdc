"""python -m tests.first_hour — walk docs/first-hour.md in a terminal of 80 columns and an empty environment, and write
docs/transcript.md from what was seen. Takes about ten minutes, most of it the demo."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.terminal import NOISE, Terminal

ROOT = Path(__file__).parents[1]
PAGE, TRANSCRIPT = ROOT / "docs" / "first-hour.md", ROOT / "docs" / "transcript.md"
SHOWN = "chat.py"  # the name under which the page's Python is typed
HEAD = """# A first hour, recorded

What a terminal of 80 columns shows when somebody types the commands of [the first hour](first-hour.md) in an empty
environment. The line that shows the progress is gone by then. `python -m tests.first_hour` records it again.

```
"""


def steps(place: Path) -> list[str]:
    """The commands of the page, in order; the Python is put into ``place`` and run as a file."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    install, demo = (text for kind, text in blocks[:2] if not kind)
    (chat,) = [text for kind, text in blocks if kind == "python"]
    (place / SHOWN).write_text(chat, encoding="utf-8")
    return [*install.strip().splitlines(), f"{demo.strip()} --dry-run", demo.strip(), f"cat {SHOWN}", f"python {SHOWN}"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bitwright"
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(".*", "demo-out*", "site", "__pycache__", "*.egg-info"))
        commands = steps(place)
        quiet = {"PIP_QUIET": "2", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # what pip says of this machine's own settings
        with Terminal(place, **quiet) as terminal:
            for command in commands:
                if code := terminal.run(command, seconds=3600):
                    raise SystemExit(f"{command}: exit code {code}\n{terminal.text()}")
            text = terminal.text().rstrip().removesuffix("$").rstrip().removesuffix("(.venv)").rstrip()
    if noise := [word for word in NOISE if word in text]:
        sys.exit(f"libraries speak: {noise}\n{text}")
    TRANSCRIPT.write_text(f"{HEAD}{text}\n```\n", encoding="utf-8")
    print(f"{TRANSCRIPT}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
