"""The report page: what is on it, that it stands by itself, and that a browser has nothing to complain about."""

import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from rich.console import Console

import bitwright
from bitwright import BitwrightError, Report, Sensitivity, Settings
from bitwright.checkpoint.output import write_json
from bitwright.evaluate.verdict import Entry
from bitwright.host.progress import Reporter
from bitwright.report import charts
from bitwright.report.charts import round_numbers
from bitwright.report.page import page
from bitwright.report.report import sentences
from bitwright.report.table import table
from tests.conftest import Build

SMALL = Settings(
    formats=("nf4-b64", "nf4-b32-dq"),
    sequences=8,
    length=32,
    held_out_sequences=2,
    held_out_length=32,
    dtype="float32",
    calibration="documentation",
)
VOID = {"meta", "link", "path", "line", "rect", "br"}


@pytest.fixture(scope="module")
def finished(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: out and work in one folder."""
    place = tmp_path_factory.mktemp("report")
    text = place / "held-out.txt"
    text.write_text("\n".join(topics.values()))
    bitwright.quantize(
        str(build("llama")),
        place / "out",
        "+40%",
        workdir=place / "work",
        settings=replace(SMALL, held_out=str(text)),
        reporter=Reporter(quiet=True),
    )
    return place


def read(finished: Path) -> tuple[Report, Sensitivity]:
    return Report.load(finished / "work" / "report.json"), Sensitivity.load(finished / "work" / "sensitivity.json")


class Balanced(HTMLParser):
    """Collects what is loaded, and fails on a tag that is closed by another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_says_everything_and_loads_nothing(finished: Path) -> None:
    text = (finished / "out" / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert set(parser.loaded) == {"data:,"}
    assert not re.search(r"@import|url\(", text)
    for heading in (
        "Against everything else",
        "Size against damage",
        "Weight error",
        "Output error",
        "Damage",
        "What was chosen",
        "Predicted against measured",
        "Why",
        "Coverage",
        "Calibration and provenance",
        "The command",
    ):
        assert f"<h2>{heading}</h2>" in text
    report, table = read(finished)
    for weight in table.weights:
        assert weight.name.removesuffix(".weight") in text
    for choice in report.plan.choices:
        assert not choice.reason or choice.reason in text
    assert f"{report.result.divergence.kl:.4f}" in text
    assert str(report.provenance["calibration_hash"]) in text
    assert text.count("<svg") == 6
    for name in ("report.html", "report.json", "bitwright.json", "README.md"):
        assert str(finished.parent) not in (finished / "out" / name).read_text(encoding="utf-8"), "no path of this machine"


def test_terms_are_explained_once_and_reasons_stand_by_role(finished: Path) -> None:
    text = (finished / "out" / "report.html").read_text(encoding="utf-8")
    terms = re.findall(r'<abbr tabindex="0" data-tip="[^"]{20,}">([^<]+)</abbr>', text)
    assert {"KL divergence", "nats", "held-out", "perplexity"} <= set(terms)
    assert len(terms) == len(set(terms))
    report, table = read(finished)
    heads = re.findall(r'<tr class="group"><td>([^:<]+): (\d+) of (\d+)</td>', text)
    assert sum(int(count) for _, count, _ in heads) == sum(bool(choice.reason) for choice in report.plan.choices)
    assert sum(int(whole) for _, _, whole in heads) <= len(table.weights)


def test_a_page_of_400_weights_stays_below_a_megabyte(finished: Path) -> None:
    report, table = read(finished)
    few = {choice.weight: choice for choice in report.plan.choices}
    weights, choices = [], []
    for i in range(-(-400 // len(few))):
        for weight in table.weights:
            name = weight.name.replace("layers.0", f"layers.{2 * i}").replace("layers.1", f"layers.{2 * i + 1}")
            weights.append(replace(weight, name=name, block=2 * i + weight.block))
            reason = "16 bit: costs 1.3 MB, saves 0.00079 nats; next best use of these bytes was " + 3 * name
            choices.append(replace(few[weight.name], weight=name, reason=reason))
    large = replace(report, plan=replace(report.plan, choices=tuple(choices)))
    assert len(choices) >= 400
    assert len(page(large, replace(table, weights=tuple(weights))).encode()) < 1_000_000


def test_names_from_files_are_text_and_never_markup(finished: Path) -> None:
    report, table = read(finished)
    evil = "<script>alert(1)</script>"
    plan = replace(report.plan, source=evil, choices=(replace(report.plan.choices[0], reason=evil), *report.plan.choices[1:]))
    weights = (replace(table.weights[0], role=evil), *table.weights[1:])
    text = page(replace(report, out=evil, plan=plan, notes=(evil,)), replace(table, weights=weights))
    assert text.count("<script>") == 1


def test_a_model_without_any_divergence_has_a_page_too(finished: Path) -> None:
    report, table = read(finished)
    nothing = {"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0, "kl_p99": 0.0, "kl_max": 0.0}
    entries = tuple(replace(e, divergence=replace(e.divergence, **nothing), predicted_nats=0.0) for e in report.verdict.entries)
    weights = tuple(
        replace(w, rows=tuple(replace(r, damage_nats=0.0, weight_error=0.0, output_error=0.0) for r in w.rows))
        for w in table.weights
    )
    plan = replace(report.plan, check_nats=0.0, frontier=())
    flat = replace(report, plan=plan, verdict=replace(report.verdict, entries=entries), check=replace(report.check, **nothing))
    assert page(flat, replace(table, weights=weights)).count("<svg") == 6


def test_report_draws_the_same_page_again(finished: Path, tmp_path: Path) -> None:
    written = bitwright.report(finished / "work", tmp_path / "again.html")
    assert written.read_bytes() == (finished / "out" / "report.html").read_bytes()
    assert Report.load(finished / "out" / "report.json") == read(finished)[0]
    (tmp_path / "report.json").write_text(json.dumps({"schema": "something/9"}))
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BitwrightError) as caught:
            bitwright.report(place)
        assert caught.value.finding.rule == "report/file"


def test_files_of_two_runs_give_no_page(finished: Path, tmp_path: Path) -> None:
    for name in ("report.json", "sensitivity.json"):
        (tmp_path / name).write_text((finished / "work" / name).read_text())
    other = json.loads((tmp_path / "sensitivity.json").read_text())
    other["provenance"]["seed"] = 9
    (tmp_path / "sensitivity.json").write_text(json.dumps(other))
    with pytest.raises(BitwrightError) as caught:
        bitwright.report(tmp_path)
    assert caught.value.finding.rule == "report/other-run"


def test_figures_that_are_no_numbers_survive_the_disk(finished: Path, tmp_path: Path) -> None:
    report, table = read(finished)
    broken = {"kl": math.nan, "kl_low": math.nan, "perplexity": math.inf}
    entries = tuple(
        replace(e, divergence=replace(e.divergence, **broken)) if e.label == report.verdict.stock else e
        for e in report.verdict.entries
    )
    odd = replace(report, verdict=replace(report.verdict, entries=entries))
    write_json(tmp_path / "report.json", odd.to_dict())
    again = Report.load(tmp_path / "report.json")
    assert math.isnan(again.verdict.entry(report.verdict.stock).divergence.kl)
    assert again.result == report.result
    assert page(again, table).count("<svg") == 6


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_run(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("bitwright.pipeline.page", refuse)
    settings = replace(SMALL, compare=False)
    report = bitwright.quantize(str(build("llama")), tmp_path / "out", "+40%", settings=settings, reporter=Reporter(quiet=True))
    assert "report.html could not be made: RuntimeError: no ink" in report.notes
    assert {"README.md", "report.json", "model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "report.html").exists()


def test_what_has_more_bits_than_usual_is_marked(finished: Path) -> None:
    report, table = read(finished)
    usual = report.plan.default_format
    shown = {point["text"].split(" in ")[0]: point["kept"] for point in charts.damages(report, table)["data"]["values"]}
    assert len(shown) == len(table.weights)
    for choice in report.plan.choices:
        mark = shown[choice.weight.removesuffix(".weight")]
        assert (mark == charts.USUAL) == (choice.format == usual)
        assert choice.format != "16bit" or mark == charts.MORE
    assert {charts.MORE, charts.USUAL} <= set(shown.values())


def test_the_frontier_shows_what_was_measured(finished: Path) -> None:
    report, table = read(finished)
    drawn = {
        value["name"]: value["nats"]
        for layer in charts.frontier(report, table)["layer"]
        for value in layer["data"]["values"]
        if "low" in value
    }
    assert drawn == {e.label: e.divergence.kl for e in report.verdict.entries if e.label != "16-bit arithmetic"}


def test_round_numbers() -> None:
    assert round_numbers(0.003, 7) == [0.01, 0.1, 1.0]
    assert round_numbers(0.03, 0.6) == [0.05, 0.1, 0.2, 0.5]
    assert round_numbers(0.09, 0.14) == [0.1]


PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const mark = document.querySelector("svg [role=graphics-symbol][aria-roledescription=point]");
  const box = mark.getBoundingClientRect();
  mark.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: box.x, clientY: box.y}));
  document.title = JSON.stringify({loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    tip: document.getElementById("tip").textContent, label: mark.getAttribute("aria-label"),
    wide: document.documentElement.scrollWidth > innerWidth});
}, 100))</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(1040, False), (1040, True), (500, False)])
def test_a_browser_shows_it_without_errors_and_without_a_network(
    finished: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    probed = tmp_path / "report.html"
    probed.write_text((finished / "out" / "report.html").read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--window-size={width},2400",
        f"--user-data-dir={tmp_path / 'profile'}",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]

    def browse(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["chromium", *options, *words, probed.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    shown = browse("--dump-dom", "--virtual-time-budget=3000")
    assert "CONSOLE" not in shown.stderr, shown.stderr
    found = json.loads(unescape(re.findall(r"<title>(.*?)</title>", shown.stdout)[0]))
    assert found["loaded"] == []
    assert found["tip"] == found["label"] != ""
    assert not found["wide"], "only tables and pictures scroll, never the page"
    browse(f"--screenshot={tmp_path / 'shot.png'}")
    assert (tmp_path / "shot.png").stat().st_size > 20_000


def test_the_table_shows_whole_figures_at_any_width(finished: Path) -> None:
    report, _ = read(finished)
    for width, title in ((80, "top-1"), (160, "perplexity")):
        shown = io.StringIO()
        Console(width=width, file=shown, color_system=None).print(table(report.verdict.entries, report.verdict.stock, width))
        lines = shown.getvalue().splitlines()
        assert lines[0].rstrip().endswith(title)
        assert not any("…" in line or len(line.rstrip()) > width for line in lines)
        assert all(any(line.startswith(entry.label) for line in lines) for entry in report.verdict.entries)


def test_each_domain_is_held_against_stock_in_it(finished: Path) -> None:
    report, sensitivity = read(finished)
    nats = {report.verdict.stock: (0.5, 0.25), report.verdict.shipped: (0.05, 0.1)}

    def entry(one: Entry) -> Entry:
        parts = zip(("prose", "code"), nats.get(one.label, (0.3, 0.3)), strict=True)
        domains = tuple(replace(one.divergence, label=name, kl=kl) for name, kl in parts)
        return replace(one, divergence=replace(one.divergence, domains=domains))

    apart = replace(report, verdict=replace(report.verdict, entries=tuple(map(entry, report.verdict.entries))))
    assert apart.domain_ratios(apart.result.divergence) == pytest.approx({"prose": 0.1, "code": 0.4})
    assert "by kind of text between 0.100 (prose) and 0.400 (code) of it" in sentences(apart)[0]
    assert "by kind of text" not in sentences(report)[0]
    text, shown = page(apart, sensitivity), io.StringIO()
    assert "<td>0.400</td>" in text.partition("– code")[2]
    Console(width=160, file=shown, color_system=None).print(table(apart.verdict.entries, apart.verdict.stock, 160))
    assert any(line.startswith("  code") and " 0.400 " in line for line in shown.getvalue().splitlines())
