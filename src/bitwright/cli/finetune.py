"""bitwright finetune MODEL DATA OUT"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitwright.cli import common
from bitwright.cli.common import guarded, print_plain, wide_console

if TYPE_CHECKING:
    from bitwright.finetune.training import Training


@guarded
def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What quantize wrote, another 4-bit checkpoint of bitsandbytes, a .gguf file, or a 16-bit model (demo too), "
            "which is quantized first.",
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A .csv, .xlsx, .jsonl, .json, .parquet or .txt file, a folder of pictures, or a datasets id."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="What to create: the adapter's directory, or with qat a checkpoint.")
    ] = Path("adapter"),
    method: Annotated[
        str,
        typer.Option(
            help="qlora: an adapter beside MODEL in four bits. lora: beside MODEL as it is. qat: the codes of MODEL, which "
            "quantize wrote. scales: only their scales."
        ),
    ] = "qlora",
    budget: Annotated[str, typer.Option(help="qlora of a 16-bit MODEL: its size in four bits, as quantize has it.")] = "+10%",
    plan: Annotated[str, typer.Option(help="qlora of a 16-bit MODEL: a plan.json instead of a budget.")] = "",
    base: Annotated[str, typer.Option(help="qlora of a 16-bit MODEL: where it is kept in four bits. Default: OUT-base.")] = "",
    source: Annotated[
        str, typer.Option(help="The 16-bit model of a MODEL that quantize wrote, where its plan does not tell.")
    ] = "",
    template: Annotated[str, typer.Option(help="The question, such as '{instruction}[[ Context: {context}]]'.")] = "",
    answer: Annotated[str, typer.Option(help="The column with the answer, together with --template.")] = "",
    sheet: Annotated[str, typer.Option(help="Of an .xlsx file: a sheet, several with commas, or '*' for all.")] = "",
    rows_together: Annotated[int, typer.Option(min=1, help="Rows that make one conversation.")] = 1,
    train: Annotated[str, typer.Option(help="Parts of a model that sees, by commas: text, vision, projector.")] = "text",
    targets: Annotated[str, typer.Option(help="Linears that are trained, by patterns separated by commas.")] = "*",
    rank: Annotated[int, typer.Option(min=0, help="Of the change that is trained. 0, with qat: whole weights.")] = 16,
    alpha: Annotated[float, typer.Option(min=0.0, help="The change is scaled by alpha / rank.")] = 16.0,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank) instead.")] = False,
    length: Annotated[int, typer.Option(min=16, help="Tokens of a text at most.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Texts of one pass.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes of one step.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="The highest; it rises first and then falls.")] = 2e-4,
    epochs: Annotated[float, typer.Option(min=0.0, help="How often all texts are read.")] = 1.0,
    max_steps: Annotated[int, typer.Option(min=0, help="Stop after so many steps. 0: by epochs.")] = 0,
    optimizer: Annotated[str, typer.Option(help="adamw, or adamw8bit, with 8 bits a number of its states.")] = "adamw",
    offload: Annotated[
        bool, typer.Option("--offload", help="On a GPU: keep what the backward pass needs in the processor's memory.")
    ] = False,
    liger: Annotated[bool, typer.Option("--liger", help="On a GPU: Liger's kernels (pip install liger-kernel).")] = False,
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the texts that are kept apart.")] = 0.05,
    seed: common.Seed = 0,
    workdir: common.Workdir = "",
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    preview: Annotated[int, typer.Option(min=0, help="Only show so many texts, with what carries loss in colour.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter at OUT that Bitwright wrote.")] = False,
    verbose: common.Verbose = False,
    json_: common.Json = False,
) -> None:
    """Train MODEL on DATA: a small addition (LoRA) beside weights that stay as they are stored, or the stored codes."""
    from bitwright.checkpoint.output import PROOF
    from bitwright.finetune.card import as_written, curve
    from bitwright.finetune.finetune import finetune
    from bitwright.finetune.train import CONFIG
    from bitwright.finetune.training import IN_FORMAT, Training
    from bitwright.host.progress import Reporter
    from bitwright.host.texts import read_object
    from bitwright.runtimes.llama_cpp import GGUF_ADAPTER

    training = Training(
        method=method,
        source=source,
        budget=budget,
        plan=plan,
        base=base,
        train=tuple(name.strip() for name in train.split(",") if name.strip()),
        targets=tuple(name.strip() for name in targets.split(",") if name.strip()),
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        length=length,
        batch=batch,
        accumulate=accumulate,
        learning_rate=learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        optimizer=optimizer,
        offload=offload,
        liger=liger,
        held_out=held_out,
        template=template,
        answer=answer,
        sheet=sheet,
        rows_together=rows_together,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    if preview:
        _preview(model, data, training, preview)
        return
    reporter = Reporter(quiet=json_, verbose=verbose)
    found = finetune(model, data, out, training=training, workdir=workdir or None, overwrite=overwrite, reporter=reporter)
    if json_:
        from bitwright.checkpoint.workdir import finite

        print(json.dumps(finite(asdict(found)), indent=1))
        return
    console = wide_console()
    print_plain(console, f"loss while training: {curve(found.losses)}")
    if not math.isnan(found.after.loss):
        before, after = found.before, found.after
        print_plain(console, f"loss on texts that were kept apart: {before.loss:.3f} before, {after.loss:.3f} after")
        print_plain(
            console, f"answers right to the last token: {100 * before.right:.0f} % before, {100 * after.right:.0f} % after"
        )
        if said := as_written(training, found):
            print_plain(console, said.rstrip())
    if found.moved:
        print_plain(console, f"codes that moved: {100 * found.moved:.1f} %")
    print_plain(console, f"{out}: {found.n_trained:,} trained numbers, {found.steps} steps\n")
    if method in IN_FORMAT:
        print_plain(console, f"{out} is a checkpoint like {model}: the same formats, the same size")
        return
    proof, config = (read_object(out / name) for name in (PROOF, CONFIG))
    auto = proof["class"]
    lines = (
        "from peft import PeftModel",
        f"from transformers import {auto}",
        f"base = {auto}.from_pretrained({config['base_model_name_or_path']!r})",
        f"model = PeftModel.from_pretrained(base, {str(out)!r})",
    )
    for line in lines:
        print_plain(console, line, code=True)
    if (out / GGUF_ADAPTER).exists():
        print_plain(console, f"\nllama-cli -m {model} --lora {out / GGUF_ADAPTER}", code=True)


def _preview(model: str, data: str, training: Training, count: int) -> None:
    """Show what training would see, and stop on what would make it worthless."""
    from bitwright.data.tokenizer import tokenizer_of
    from bitwright.finetune.base import directory_of
    from bitwright.finetune.preview import coloured
    from bitwright.finetune.texts import require_sound, texts_of, told_of

    path = directory_of(model, training.source)
    tokenizer = tokenizer_of(path)
    texts = texts_of(data, path, tokenizer, training)
    console = wide_console()
    for line in told_of(texts, training, path):
        print_plain(console, line)
    for example in texts.every[:count]:
        print_plain(console, f"\n--- row {example.row}: {len(example.ids)} tokens, {example.n_labels} carry loss")
        console.print(coloured(example, tokenizer, brackets=console.color_system is None), soft_wrap=True)
    require_sound(texts, path, tokenizer, training.length)
