"""python -m benchmarks.gguf_encoders — our encoders for GGUF's block formats against llama.cpp's own, same statistics.

For some ``down_proj`` weights of the demo model: tr(dW S dW^T), the squared output error on calibration text, of our
calibrated rounding over that of ``ggml_quantize_chunk`` with the importance matrix (the diagonal of S) of the same text.
llama.cpp comes from the wheel ``xllamacpp`` (pip install xllamacpp), whose library exports ggml's C interface.

The demo model was dequantized from Q4_1: formats with a minimum find that grid again, which says nothing about weights that
were never quantized. ``--noise`` adds Gaussian noise of that share of each weight's standard deviation.
"""

from __future__ import annotations

import argparse
import time

import gguf
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.llama_cpp_files import quantize
from benchmarks.models import reference
from bitwright.containers.gguf.container import GGUF
from bitwright.data.held_out import held_out
from bitwright.data.tokenizer import tokenizer_of
from bitwright.formats.ggml.format import GGML_FORMATS
from bitwright.formats.iq.format import CODEBOOK_FORMATS
from bitwright.measure.curvature import energy
from bitwright.measure.moments import SecondMoment
from bitwright.rounding.kernels.error_feedback import Feedback

SEQUENCES, LENGTH = 24, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="*", default=[4, 14, 24])
    parser.add_argument("--formats", nargs="*", default=[n for n in (*GGML_FORMATS, *CODEBOOK_FORMATS) if n != "tq1_0"])
    parser.add_argument("--noise", type=float, default=0.1)
    options = parser.parse_args()
    cases = list(_cases(options.blocks, options.noise))
    view = Table(box=None)
    for title in ("format", "bits", "ours / llama.cpp", "llama.cpp / nearest", "seconds ours / llama.cpp"):
        view.add_column(title, justify="right")
    for name in options.formats:
        ours, theirs, plain, seconds = 0.0, 0.0, 0.0, [0.0, 0.0]
        for weight, moment, feedback in cases:
            format = GGUF.format(name)
            rounder = GGUF.rounder(format)
            started = time.perf_counter()
            rounded = rounder.calibrated(weight, feedback, [format])[0]
            ours += energy(rounded.decode() - weight, moment) / energy(weight, moment)
            seconds[0] += time.perf_counter() - started
            started = time.perf_counter()
            theirs += energy(llama_cpp(weight, name, moment.diagonal()) - weight, moment) / energy(weight, moment)
            seconds[1] += time.perf_counter() - started
            plain += energy(rounder.nearest(weight, format).decode() - weight, moment) / energy(weight, moment)
        bits = 8 * GGUF.format(name).record_nbytes / GGUF.format(name).record
        view.add_row(name, f"{bits:.2f}", f"{ours / theirs:.3f}", f"{theirs / plain:.3f}", f"{seconds[0] / seconds[1]:.2f}")
    Console().print(view)


def _cases(blocks: list[int], noise: float):
    """(weight [N, K], second moment of its input [K, K], the moment factored) for the ``down_proj`` of each block."""
    source = reference("smollm2")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
    samples = list(held_out(tokenizer_of(source), "documentation", SEQUENCES, LENGTH).samples)
    sums: dict[int, SecondMoment] = {}
    for block in blocks:
        linear = model.model.layers[block].mlp.down_proj
        sums[block] = SecondMoment(linear.in_features, linear.weight.device)
        linear.register_forward_pre_hook(lambda _, args, into=sums[block]: into.add(args[0].flatten(0, 1)))
    with torch.no_grad():
        for sample in samples:
            model.model(sample.ids[None])
    generator = torch.Generator().manual_seed(0)
    for block in blocks:
        weight = model.model.layers[block].mlp.down_proj.weight.detach()
        noisy = weight + noise * weight.std() * torch.randn(weight.shape, generator=generator)
        moment = sums.pop(block).take()
        yield noisy, moment, Feedback.of(moment.clone())


def llama_cpp(weight: Tensor, name: str, importance: Tensor) -> Tensor:
    """``weight`` [N, K] as llama.cpp encodes it with ``importance`` [K], decoded."""
    kind, format = gguf.GGMLQuantizationType[name.upper()], GGUF.format(name)
    out = quantize(weight, int(kind), format.record, format.record_nbytes, importance / importance.mean())
    return torch.from_numpy(gguf.dequantize(out, kind).copy())


if __name__ == "__main__":
    main()
