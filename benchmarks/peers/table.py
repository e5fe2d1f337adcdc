"""docs/peers.md and its plots from the data file: python -m benchmarks.peers.table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.rows import ROWS
from bitwright.report.draw import svgs

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results.jsonl", HERE.parent.parent / "docs"
MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma": "gemma-3-270m", "qwen": "Qwen2.5-Coder-0.5B-Instruct"}
BUDGETS = (4.4, 4.7)  # bits a weight up to which the best peer is looked for
TIMED = "AutoRound g64, 200 iterations"  # the peer that our time is held against
Line = dict[str, Any]

HEAD = """# peers

Bitwright beside ten other tools, on the same model, calibration tokens and held-out text.
`python -m benchmarks.peers` measures and appends to `benchmarks/peers/results.jsonl`; `python -m benchmarks.peers.table` makes
this page and its plots from that file, and a test fails where they differ.

- **Models**: {models}, moved off the grids of the files that they came from without changing what they
  compute (`benchmarks.models.off_grid`), so that nobody finds an old grid again.
- **Text**: calibration on {sequences} sequences of 256 tokens of one half of Python's language reference, for every peer that
  calibrates and for us; held out are 8 sequences of 512 tokens of the other half (14 % of whose passages stood in the first
  one too when lines of before 2026-11-27 were measured: LOG.md; for everybody alike). KL divergence in nats per token from the
  16-bit model in 32-bit arithmetic, 95 % bootstrap interval over sequences. Each file is loaded again by its own runtime in
  a fresh process.
- **Bytes** are those of all tensors as stored; bits per weight count those of the blocks, everything else as 16 bit. Embedding
  and head stay in 16 bit for all. GGUF files quantize them too and are compared with our GGUF files, by the bytes of the file.
- **Ours** has the peer's calibration tokens and no more bytes than the peer took, in a bitsandbytes checkpoint that stock
  transformers loads. "Same container": ours is compressed-tensors, too, fused groups kept alike;
  all other lines of 2026-11-25 are older than that constraint and than a mistake in how `down_proj` was measured (LOG.md).
- **Cost** is from a loaded interpreter to saved files, without a GPU. Some lines had two cores, others (AutoRound, AWQ, GPTQ
  in groups of 32, GGUF, all of gemma and Qwen, and ours beside them) one, with other work beside: read the ratios of one line.
  Ours counts measuring, choosing and writing; one measurement serves all budgets.
"""


def load(path: Path = RESULTS) -> list[Line]:
    """The newest line of each model and peer, in the order in which they were first measured."""
    newest: dict[tuple[str, str], Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        newest[line["model"], line["label"]] = line
    return list(newest.values())


def pages(lines: list[Line]) -> dict[str, str]:
    """Name in docs/ -> text, but for the plots."""
    known = [name for name in MODELS if any(line["model"] == name for line in lines)]
    sequences = "/".join(sorted({str(line["sequences"]) for line in lines}))
    parts = [HEAD.format(models=", ".join(MODELS[name] for name in known), sequences=sequences)]
    parts += [_best(lines, known), _cost(lines, known)]
    for name in known:
        own = [line for line in lines if line["model"] == name]
        parts.append(f"## {MODELS[name]}\n\n![bytes against divergence](peers-{name}.svg)\n\n{_table(own)}")
    versions = sorted({f"{line['date']}, {line['environment']}" for line in lines})
    parts.append(
        "## Versions\n\nEach peer is installed from the pinned requirements in `benchmarks/peers/requirements/`. Dates and "
        f"environments of these lines: {'; '.join(versions)}."
    )
    return {"peers.md": "\n\n".join(part.strip() for part in parts) + "\n"}


def measured(line: Line) -> bool:
    """Whether both sides came to their end."""
    return "kl" in line and "kl" in line.get("ours", {})


def _best(lines: list[Line], known: list[str]) -> str:
    rows = []
    for name in known:
        for bits in BUDGETS:
            fitting = [
                x for x in lines if x["model"] == name and measured(x) and not x["gguf"] and x["bits_per_weight"] <= bits
            ]
            if fitting:
                best = min(fitting, key=lambda line: line["kl"])
                rows.append([MODELS[name], f"{bits:.1f}", best["label"], *_pair(best)])
    titles = ["", "bits/weight up to", "best peer", "MB", "its KL", "our MB", "our KL", "ratio"]
    return "## The best peer\n\n" + _markdown(titles, rows)


def _pair(line: Line) -> list[str]:
    ours = line["ours"]
    return [
        f"{line['nbytes'] / 1e6:.1f}",
        f"{line['kl']:.4f}",
        f"{ours['nbytes'] / 1e6:.1f}",
        f"{ours['kl']:.4f}",
        f"**{ours['kl'] / line['kl']:.2f}**",
    ]


def _cost(lines: list[Line], known: list[str]) -> str:
    """Time and memory of the slowest kind of peer and ours, and of each of our stages."""
    rows = []
    for name in known:
        line = next((x for x in lines if x["model"] == name and x["label"] == TIMED and measured(x)), None)
        if line:
            sides = [(TIMED, line), ("bitwright", line["ours"])]
            sides += [(f"- {stage}", cost) for stage, cost in line["ours"]["stages"].items()]
            for label, cost in sides:
                kl = f"{cost['kl']:.4f}" if "kl" in cost else ""
                rows.append(
                    [
                        MODELS[name],
                        label,
                        f"{cost['seconds']:.1f}",
                        f"{cost['processor_seconds']:.1f}",
                        f"{cost['peak_nbytes'] / 1e9:.2f}",
                        f"{cost['seconds'] / line['seconds']:.3f}",
                        kl,
                    ]
                )
    if not rows:
        return ""
    return "## Against learned rounding\n\n" + _markdown(["", "", "s", "processor s", "peak GB", "time ratio", "KL"], rows)


def _table(lines: list[Line]) -> str:
    rows, broken = [], []
    for line in sorted(lines, key=lambda line: (line["gguf"], line.get("kl", 0))):
        if not measured(line):
            saw = line.get("failed") or f"ours: {line['ours'].get('failed')}"
            broken.append(f"- {line['label']}: {saw}")
            continue
        ours = line["ours"]
        cost = [f"{line['seconds']:.0f}", f"{line['peak_nbytes'] / 1e9:.1f}"]
        bits = f"{line['bits_per_parameter' if line['gguf'] else 'bits_per_weight']:.2f}"
        (size, *figures), own = _figures(line), _figures(ours)
        rows.append([line["label"], size, bits, *figures, *cost, *own, f"**{ours['kl'] / line['kl']:.2f}**"])
    titles = ["peer", "MB", "bits", "KL", "interval", "top-1", "perplexity", "s", "GB"]
    titles += ["our MB", "our KL", "interval", "top-1", "perplexity", "KL ratio"]
    floor = lines[0]["floor"]
    text = (
        f"{_markdown(titles, rows)}\n\n16-bit arithmetic alone: {floor['kl']:.4f} nats (noise floor), "
        f"{floor['nbytes'] / 1e6:.1f} MB; perplexity of the 16-bit model {floor['reference_perplexity']:.2f}. "
        "Bits of GGUF files are per parameter of the model."
    )
    for gguf, name in ((False, "checkpoints"), (True, "GGUF files")):
        if own := [line["ours"] for line in lines if measured(line) and line["gguf"] == gguf]:
            seconds, processors, peak = (own[0][key] for key in ("seconds", "processor_seconds", "peak_nbytes"))
            text += f" Our {name}: {seconds:.0f} s ({processors:.0f} s of processors), peak {peak / 1e9:.1f} GB."
    known = {line["label"] for line in lines}
    missing = [row.label for row in ROWS if lines[0]["model"] in row.models and row.label not in known]
    text += "\n\nDid not come to their end:\n\n" + "\n".join(broken) if broken else ""
    return text + (f"\n\nNot run on this model: {'; '.join(missing)}." if missing else "")


def _figures(side: Line) -> list[str]:
    return [
        f"{side['nbytes'] / 1e6:.1f}",
        f"{side['kl']:.4f}",
        f"{side['kl_low']:.4f}-{side['kl_high']:.4f}",
        f"{100 * side['top1']:.1f} %",
        f"{side['perplexity']:.2f}",
    ]


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(lines: list[Line]) -> Line:
    """Bytes against divergence of one model's peers, and ours at their bytes, as a Vega-Lite specification."""
    points = []
    for line in lines:
        if measured(line) and not line["gguf"]:
            points.append(_point(line["label"], line, "peer"))
            points.append(_point("bitwright", line["ours"], "bitwright"))
    colour = {
        "field": "who",
        "type": "nominal",
        "scale": {"domain": ["bitwright", "peer"], "range": ["#c2410c", "#3b4a5a"]},
        "legend": {"title": None, "orient": "top"},
    }
    x = {"field": "mb", "type": "quantitative", "title": "megabytes as stored", "scale": {"zero": False, "padding": 140}}
    y = {
        "field": "nats",
        "type": "quantitative",
        "title": "KL divergence, nats per token",
        "scale": {"type": "log", "nice": True},
    }
    named = [point for point in points if point["who"] == "peer"]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white",
        "width": 760,
        "height": 400,
        "layer": [
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
                "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "text", "type": "nominal"}},
            },
            *[
                {
                    "data": {"values": sorted(named, key=lambda point: point["nats"])[start::2]},
                    "mark": {"type": "text", "align": align, "dx": dx, "fontSize": 10, "limit": 260},
                    "encoding": {"x": x, "y": y, "text": {"field": "name"}, "color": {"value": "#3b4a5a"}},
                }
                for start, align, dx in ((0, "left", 7), (1, "right", -7))
            ],
        ],
        "config": {"font": "sans-serif", "view": {"stroke": None}, "axis": {"gridColor": "#e5e5e5"}},
    }


def _point(name: str, line: Line, who: str) -> Line:
    mb, nats = line["nbytes"] / 1e6, line["kl"]
    return {"name": name, "who": who, "mb": mb, "nats": nats, "text": f"{name}: {mb:.1f} MB, {nats:.4f} nats"}


def main() -> None:
    lines = load()
    for name, text in pages(lines).items():
        (DOCS / name).write_text(text, encoding="utf-8")
    models = sorted({line["model"] for line in lines})
    drawings = svgs([plot([line for line in lines if line["model"] == model]) for model in models])
    for model, drawing in zip(models, drawings, strict=True):
        (DOCS / f"peers-{model}.svg").write_text(drawing + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
