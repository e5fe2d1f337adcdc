"""A source, opened and measured: what every later stage of a run works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bitwright.checkpoint.open import open_checkpoint
from bitwright.checkpoint.workdir import WorkDir, content_hash, write_text
from bitwright.checkpoint.writer import require_space
from bitwright.doctor.doctor import examine
from bitwright.errors import fail
from bitwright.evaluate import llama_cpp
from bitwright.export.container import Container, container_of
from bitwright.export.imatrix import read_imatrix, write_imatrix
from bitwright.formats.format import FORMATS, SIXTEEN_BIT, Quantized, quantized
from bitwright.formats.pack import AnyCodes
from bitwright.measure.calibration import Folds
from bitwright.measure.heap import return_large_blocks
from bitwright.measure.measure import measure_blocks
from bitwright.measure.memory import available_nbytes, fit
from bitwright.measure.pieces import load_codes, load_mean_square
from bitwright.measure.prepare import DOCUMENTATION, SELF, calibration_folds, held_out_domains, tokenizer_of
from bitwright.measure.recipe import Measured, Recipe
from bitwright.measure.sensitivity import Row, Sensitivity, WeightRows
from bitwright.measure.shrink import Estimate, shrink
from bitwright.measure.stream import BlockStream
from bitwright.models.skeleton import Skeleton, build_skeleton
from bitwright.models.spec import LINEAR, ModelSpec, Weight
from bitwright.places import without_place
from bitwright.progress import Reporter
from bitwright.rounding.round import round_nearest
from bitwright.versions import versions

DOCTOR_NOTES = 3  # findings that are told; the doctor has all
DAMPING_NOTES = 3  # weights that are named; with little calibration there may be many


@dataclass(frozen=True)
class Settings:
    """Everything about a run but the source, the output and the budget."""

    container: str = "bitsandbytes"
    formats: tuple[str, ...] = ()  # measured instead of the container's menu
    calibration: str = ""  # a file, a datasets id, self or documentation; empty: self where the model fits, else documentation
    held_out: str = DOCUMENTATION
    sequences: int = 128
    length: int = 256
    held_out_sequences: int = 8
    held_out_length: int = 512
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the arithmetic: bfloat16 where the processor multiplies it, else float32
    imatrix: str = ""  # llama.cpp's importance matrix, whose scales replace those of the calibration text
    max_memory: int | None = None  # bytes, of the whole process
    trust_remote_code: bool = False
    compare: bool = True  # also build and measure the ablations


@dataclass
class Measurement:
    """A measured model: the table, and what later stages need to write it."""

    skeleton: Skeleton
    tokenizer: Any
    container: Container
    work: WorkDir
    device: torch.device
    sensitivity: Sensitivity
    folds: Folds
    notes: list[str] = field(default_factory=list)

    def codes_of(self, weight: Weight, format: str, rounding: str) -> AnyCodes:
        """The codes of one weight: read from the work directory, or rounded to nearest anew."""
        chosen = quantized(format)
        if rounding == "calibrated":
            return load_codes(self.work, weight, chosen)
        value = self.skeleton.read(weight.name)
        return round_nearest(value.t() if weight.transposed else value, chosen)

    def write_imatrix(self, path: Path) -> None:
        """Write the mean squared inputs of all linears as llama.cpp's importance matrix."""
        folds, spec = self.folds, self.skeleton.spec
        means = {w.name: load_mean_square(self.work, w) for w in spec.weights if w.kind == LINEAR}
        write_imatrix(path, self.skeleton, means, folds.rounding.numel(), folds.n_tokens, folds.source)


def measure_model(
    source: str | Path,
    work_root: Path,
    settings: Settings,
    reporter: Reporter,
    preflight: Callable[[Sensitivity], object] | None = None,
) -> Measurement:
    """Open ``source`` and measure every weight in every format of the container.

    ``preflight`` is given the table with all bytes and no damage before anything slow begins, and may refuse it.
    """
    container = container_of(settings.container)
    _require_loadable(container, settings.formats)
    checkpoint = open_checkpoint(source)
    if preflight is not None:
        _require_own_class(container, checkpoint.config, settings)
    skeleton = build_skeleton(checkpoint, settings.trust_remote_code, container.stores_vocabulary)
    container.require(skeleton)
    return_large_blocks(skeleton.spec)
    tokenizer = tokenizer_of(checkpoint.directory, settings.trust_remote_code)
    if preflight is not None:  # a verdict will follow: its text is looked at before anything slow
        require_held_out(tokenizer, settings)
    device, dtype = device_of(settings.device), _dtype(settings)
    stock = {name: quantized(format) for name, format in container.stock(skeleton.spec).items()}
    importance = read_imatrix(Path(settings.imatrix), skeleton) if settings.imatrix else {}
    recipe = Recipe(_menus(container, skeleton.spec, settings.formats), stock, importance, seed=settings.seed)
    if preflight is not None:
        blank = [recipe.unmeasured(weight) for weight in skeleton.spec.weights]
        preflight(_sensitivity(without_place(str(source)), container, recipe, skeleton, blank, {}))
    hidden_size = int(skeleton.model.config.get_text_config().hidden_size)
    recipe = fit(skeleton.spec, recipe, settings.sequences, settings.length, dtype.itemsize, hidden_size, settings.max_memory)
    codes_nbytes = sum(container.nbytes(f, w.n_rows, w.n_cols) for w in skeleton.spec.weights for f in recipe.formats[w.name])
    boundaries = (len(skeleton.blocks) + 2) * settings.sequences * settings.length * hidden_size * dtype.itemsize
    require_space(work_root, codes_nbytes + boundaries, "the work directory")
    calibration, why = _calibration(settings, skeleton)
    text_key = content_hash(checkpoint.fingerprint, settings.sequences, settings.length, settings.seed, device.type, versions())
    folds = calibration_folds(
        skeleton,
        tokenizer,
        calibration,
        count=settings.sequences,
        length=settings.length,
        seed=settings.seed,
        device=device,
        work=WorkDir(work_root, text_key),
        reporter=reporter,
    )
    key = content_hash(checkpoint.fingerprint, folds.key, str(dtype), device.type, recipe.key(), versions())
    work = WorkDir(work_root, key)
    found = measure_blocks(BlockStream(skeleton, device, dtype), folds, recipe, work, reporter)
    provenance = {
        "versions": versions(),
        "fingerprint": checkpoint.fingerprint,
        "seed": settings.seed,
        "calibration": without_place(folds.source),
        "sequences": len(folds.all),
        "length": folds.n_tokens,
        "calibration_hash": folds.key,
        "dtype": str(dtype),
        "device": device.type,
    }
    sensitivity = _sensitivity(without_place(str(source)), container, recipe, skeleton, found, provenance)
    write_text(work_root / "sensitivity.json", sensitivity.to_json())
    notes = _doctor_notes(checkpoint.directory) + ([why] if why else [])
    if container.suffix == ".gguf" and not llama_cpp.available():
        notes.append("llama.cpp is missing (pip install 'bitwright[gguf]'): the file is measured as transformers decodes it")
    notes += _damping_notes(found, recipe.damping)
    return Measurement(skeleton, tokenizer, container, work, device, sensitivity, folds, notes)


def _sensitivity(
    source: str, container: Container, recipe: Recipe, skeleton: Skeleton, found: list[Measured], provenance: dict[str, Any]
) -> Sensitivity:
    roles = [weight.role for weight in skeleton.spec.weights]
    by_name = {m.name: m for m in found}
    in_order = [by_name[weight.name] for weight in skeleton.spec.weights]
    shrunk = {kind: _shrunk(in_order, roles, kind) for kind in ("nearest", "calibrated")}
    rows = []
    wanted = {format.name: format for formats in recipe.formats.values() for format in formats}
    for i, (weight, measured) in enumerate(zip(skeleton.spec.weights, in_order, strict=True)):
        shape = (weight.n_rows, weight.n_cols)
        reasons = {name: container.unavailable(format, *shape) for name, format in wanted.items()}
        candidates = []
        for c in measured.candidates:
            damage, stderr = shrunk[c.rounding][i][c.format]
            size = container.nbytes(FORMATS[c.format], *shape)
            candidates.append(
                Row(
                    c.format,
                    c.rounding,
                    size,
                    damage,
                    stderr,
                    c.damage_nats,
                    c.check_nats,
                    c.check_stderr,
                    c.weight_error,
                    c.output_error,
                )
            )
        sixteen = Row("16bit", "none", container.nbytes(SIXTEEN_BIT, *shape), *[0.0] * 7)
        barred = tuple((name, why) for name, why in reasons.items() if why)
        stock = recipe.stock[weight.name].name if weight.name in recipe.stock else "16bit"
        rows.append(
            WeightRows(weight.name, weight.block, weight.role, *shape, (*candidates, sixteen), stock, measured.damping, barred)
        )
    kept = container.kept_nbytes(skeleton)
    return Sensitivity(source, container.name, container.stock_name, kept, tuple(rows), provenance, container.sizes(skeleton))


def require_held_out(tokenizer: Any, settings: Settings) -> None:
    """Raise BitwrightError when there is no text for the verdict, or calibration has seen it."""
    if settings.held_out == settings.calibration and settings.held_out != DOCUMENTATION:
        raise fail(
            "held-out/seen",
            f"--held-out {settings.held_out}",
            saw="the calibration text",
            wanted="text that nothing else saw",
            help="name another file, or leave --held-out out",
        )
    held_out_domains(tokenizer, settings.held_out, settings.held_out_sequences, settings.held_out_length)


def _require_own_class(container: Container, config: dict[str, Any], settings: Settings) -> None:
    """Raise where the written checkpoint would need code of the source, which it never carries."""
    if settings.trust_remote_code and "auto_map" in config and not container.suffix:
        raise fail(
            "source/code",
            "config.json",
            saw="auto_map: the model is built by code that it brings along",
            wanted="a class that transformers has, since a written checkpoint carries no code",
            help="bitwright quantize SOURCE OUT.gguf where llama.cpp knows the family, or bitwright measure SOURCE",
        )


def _doctor_notes(directory: Path) -> list[str]:
    """What the doctor's checks found; what makes quantizing impossible has stopped the run before."""
    findings = [finding for finding in examine(directory) if finding.severity != "note"]
    notes = [f"{finding.where}: {finding.saw} ({finding.rule})" for finding in findings[:DOCTOR_NOTES]]
    if len(findings) > DOCTOR_NOTES:
        notes.append(f"{len(findings) - DOCTOR_NOTES} more findings: bitwright doctor prints all")
    return notes


def _damping_notes(found: list[Measured], usual: float) -> list[str]:
    damped = sorted((m for m in found if m.damping > usual), key=lambda m: -m.damping)
    notes = [f"{m.name}: second moment needed damping {m.damping:g}" for m in damped[:DAMPING_NOTES]]
    if len(damped) > DAMPING_NOTES:
        notes.append(f"{len(damped) - DAMPING_NOTES} more weights needed more damping than {usual:g}: sensitivity.json has all")
    return notes


def _shrunk(found: list[Measured], roles: list[str], kind: str) -> list[dict[str, tuple[float, float]]]:
    """Format -> (damage, standard error) for each weight, over the candidates of one kind of rounding."""
    chosen = [[c for c in m.candidates if c.rounding == kind] for m in found]
    estimates = [[Estimate(c.damage_nats, c.damage_stderr, c.moment_nats) for c in candidates] for candidates in chosen]
    return [
        {c.format: pair for c, pair in zip(candidates, pairs, strict=True)}
        for candidates, pairs in zip(chosen, shrink(estimates, roles), strict=True)
    ]


def _require_loadable(container: Container, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in container.formats or name == "16bit":
            raise fail(
                "formats/unknown",
                f"--formats {name}",
                saw=f"{container.name} does not load it",
                wanted=f"formats out of {', '.join(f for f in container.formats if f != '16bit')}",
                help="leave --formats out",
            )


def _menus(container: Container, spec: ModelSpec, names: tuple[str, ...]) -> dict[str, tuple[Quantized, ...]]:
    """The formats in which each weight is measured."""
    menus = {}
    for weight in spec.weights:
        wanted = [quantized(name) for name in names or container.menu(weight)]
        menus[weight.name] = tuple(f for f in wanted if not container.unavailable(f, weight.n_rows, weight.n_cols))
    return menus


def _calibration(settings: Settings, skeleton: Skeleton) -> tuple[str, str]:
    """The calibration source, and a note when it was chosen by size."""
    if settings.calibration:
        return settings.calibration, ""
    needed = int(1.3 * sum(ref.nbytes for ref in skeleton.checkpoint.refs.values()))
    room = min(available_nbytes(), settings.max_memory or available_nbytes())
    if needed <= room:
        return SELF, ""
    return DOCUMENTATION, (
        f"calibrated on documentation text: a model that writes its own needs {needed / 1e9:.1f} GB, {room / 1e9:.1f} are free"
    )


def device_of(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise fail(
            "device/unknown",
            f"--device {name}",
            saw=str(error).splitlines()[0],
            wanted="a device that torch can use here",
            help="--device auto",
        ) from error


def _dtype(settings: Settings) -> torch.dtype:
    if settings.dtype in ("float32", "bfloat16"):
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    if device_of(settings.device).type != "cpu" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
