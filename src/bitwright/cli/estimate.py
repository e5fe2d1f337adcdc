"""bitwright estimate MODEL"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.checkpoint.limits import MOST_LAYERS
from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, wide_console
from bitwright.host.sizes import size_nbytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bitwright.estimate.estimate import Estimate, Line
    from bitwright.estimate.training import TrainingLine


@guarded
def run(
    model: Annotated[
        str,
        typer.Argument(
            help="A model directory, a config.json, a .gguf file, demo, or a hub id (of which headers are fetched)."
        ),
    ] = "",
    memory: Annotated[str, typer.Option(help="Memory of the device, such as 8GB: what fits, and how long a context.")] = "",
    context: Annotated[int, typer.Option(min=1, max=10**9, help="Tokens whose keys and values are kept.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, max=10**6, help="Texts at once.")] = 1,
    cache_bits: Annotated[float, typer.Option(min=1, max=64, help="Bits of a number in the cache: 16, 8, 4.5 ...")] = 16,
    gpu: Annotated[bool, typer.Option("--gpu", help="The memory is a GPU's: 0.5 GB of it go to CUDA.")] = False,
    overhead: Annotated[str, typer.Option(help="What the runtime takes beside the model, in place of what --gpu says.")] = "",
    plan: Annotated[list[Path] | None, typer.Option(help="A plan.json of bitwright allocate, as one more line.")] = None,
    params: Annotated[str, typer.Option(help="Instead of MODEL: a dense llama of so many parameters, such as 7B.")] = "",
    layers: Annotated[int, typer.Option(min=1, max=MOST_LAYERS, help="With --params: number of layers.")] = 32,
    hidden: Annotated[int, typer.Option(min=1, max=10**7, help="With --params: hidden width.")] = 4096,
    heads: Annotated[int, typer.Option(min=0, max=10**7, help="With --params: attention heads; 0: 128 wide each.")] = 0,
    kv_heads: Annotated[
        int, typer.Option(min=0, max=10**7, help="With --params: heads of keys and values; 0: as many as heads.")
    ] = 0,
    inner: Annotated[
        int, typer.Option(min=0, max=10**7, help="With --params: feed-forward width; 0: what makes the sum right.")
    ] = 0,
    vocabulary: Annotated[int, typer.Option(min=1, max=10**7, help="With --params: tokens of the vocabulary.")] = 128_256,
    tied: Annotated[bool, typer.Option("--tied", help="With --params: the embedding is the head too.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Also what training takes, on texts of --context tokens.")] = False,
    rank: Annotated[int, typer.Option(min=1, max=10**6, help="With --train: the rank of LoRA.")] = 16,
    optimizer: Annotated[str, typer.Option(help="With --train: mixed, 16bit or 8bit AdamW.")] = "mixed",
    keep_activations: Annotated[
        bool, typer.Option("--keep-activations", help="No recomputation in the backward pass.")
    ] = False,
    json_: common.Json = False,
) -> None:
    """Estimate what MODEL takes on disk and in memory, format by format, before anything is downloaded; and what to do."""
    from bitwright.errors import fail
    from bitwright.estimate.estimate import estimate
    from bitwright.estimate.families import parts
    from bitwright.estimate.model import source_of
    from bitwright.estimate.sketch import sketch
    from bitwright.estimate.source import Source, require_same_model
    from bitwright.estimate.training import CHECKPOINTED, EIGHT_BIT, KEPT, MIXED, PURE_16, training
    from bitwright.models.settings import text_config
    from bitwright.plan import Plan

    if bool(model) == bool(params):
        raise fail(
            "estimate/model",
            "MODEL",
            saw="both" if model else "neither",
            wanted="a model, or --params",
            help="bitwright estimate --params 7B --layers 32 --hidden 4096",
        )
    names = {"mixed": MIXED, "16bit": PURE_16, "8bit": EIGHT_BIT}
    if optimizer not in names:
        raise fail(
            "estimate/optimizer",
            f"--optimizer {optimizer}",
            saw=optimizer,
            wanted=f"one of {', '.join(names)}",
            help="--optimizer mixed",
        )
    if model:
        source = source_of(model)
    else:
        config = sketch(params, layers, hidden, heads, kv_heads, inner, vocabulary, tied)
        source = Source(config, parts(config))
    plans = {}
    for path in plan or ():
        known = Plan.load(path)
        require_same_model(known, source, path)
        plans[str(path)] = known.nbytes
    found = estimate(
        source,
        memory=size_nbytes(memory),
        context=context,
        batch=batch,
        cache_bits=cache_bits,
        plans=plans,
        overhead=size_nbytes(overhead),
        gpu=gpu,
    )
    lines: tuple[TrainingLine, ...] = ()
    if train:
        stored = {line.format: line.disk_nbytes for line in found.lines}
        lines = training(
            source.parts,
            text_config(source.config),
            stored,
            n_tokens=context,
            batch=batch,
            rank=rank,
            optimizer=names[optimizer],
            activations=KEPT if keep_activations else CHECKPOINTED,
            memory=size_nbytes(memory),
        )
    if json_:
        print(json.dumps(asdict(found) | {"training": [asdict(line) for line in lines]}, indent=1))
        return
    console = wide_console()
    _table_of(console, found, memory)
    if lines:
        console.print()
        console.print(_methods(lines, bool(memory)))
    _advice(console, found)


def _table_of(console: Console, found: Estimate, memory: str) -> None:
    """What is counted, the rows, and what is to say of them."""
    active = "" if found.n_active == found.n_parameters else f", {found.n_active / 1e9:.2f} active in a token"
    console.print(f"{found.n_parameters / 1e9:.3f} billion parameters{active}; context {found.context:,}, batch {found.batch}")
    if len(found.n_by_role) > 1:
        console.print(", ".join(f"{role} {count / 1e9:.3f}" for role, count in found.n_by_role.items()))
    console.print(_formats(found.lines, bool(memory)))
    for note in found.notes:
        print_plain(console, f"note: {note}")
    if best := found.best:
        print_plain(console, f"best choice within {memory}: {best.format}")


def _advice(console: Console, found: Estimate) -> None:
    """The verdict, and as the last line, whole however narrow the terminal is, the command."""
    if found.verdict or found.command:
        console.print()
    for sentence in found.verdict.splitlines():
        print_plain(console, sentence)
    if found.command:
        print_plain(console, found.command, code=True)


def _formats(lines: tuple[Line, ...], judged: bool) -> Table:
    titles = ["", "disk GB", "cache GB", "workspace GB", "memory GB", *(["fits", "longest context"] if judged else [])]
    rows = []
    for line in lines:
        sizes = (line.disk_nbytes, line.cache_nbytes, line.workspace_nbytes, line.memory_nbytes)
        verdict = ["yes" if line.fits else "no", f"{line.longest_context:,}"] if judged else []
        rows.append([line.format, *(f"{size / 1e9:.2f}" for size in sizes), *verdict])
    return _table(titles, rows)


def _methods(lines: tuple[TrainingLine, ...], judged: bool) -> Table:
    titles = ["", "weights GB", "trained GB", "activations GB", "memory GB", *(["fits"] if judged else [])]
    rows = []
    for line in lines:
        sizes = (line.weights_nbytes, line.trained_nbytes, line.activations_nbytes, line.memory_nbytes)
        verdict = ["yes" if line.fits else "no"] if judged else []
        rows.append([line.method, *(f"{size / 1e9:.2f}" for size in sizes), *verdict])
    return _table(titles, rows)


def _table(titles: list[str], rows: list[list[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from bitwright.errors import printable

    view = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        view.add_column(title, justify="right" if title else "left")
    for first, *others in rows:
        view.add_row(escape(printable(first)), *others)
    return view
