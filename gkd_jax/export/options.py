"""The flags of `--mode=export`."""

import math
from typing import NamedTuple

from absl import flags

from gkd_jax.errors import UserError, unknown

FORMATS = ("stablehlo", "safetensors", "onnx", "litert")
QUANTIZE = ("int8",)
MODE = "export"
_MAX_DROP = 0.01
_FLAGS = ("format", "quantize", "max_drop", "tolerance", "export_seed")


class Options(NamedTuple):
    """What to export.

    Attributes:
      formats: of `FORMATS`, in that order.
      quantize: "int8" for a second file of LiteRT in it, None for none.
      max_drop: how much accuracy that one may lose, as a fraction.
      tolerance: by how much logits may differ from the run's own, as a share of the largest, or of 1 if that is less;
        None for that of each format.
      seed: of the student, where the run trained several; None for the first.
    """

    formats: tuple[str, ...]
    quantize: str | None = None
    max_drop: float = _MAX_DROP
    tolerance: float | None = None
    seed: int | None = None


def define(values: flags.FlagValues) -> None:
    """Adds the flags."""
    flags.DEFINE_string("format", None, f"What to export: {','.join(FORMATS)}.", flag_values=values)
    flags.DEFINE_string("quantize", None, "int8 for a second LiteRT file.", flag_values=values)
    flags.DEFINE_float("max_drop", _MAX_DROP, "Accuracy that this one may lose.", flag_values=values)
    flags.DEFINE_float("tolerance", None, "By how much logits may differ.", flag_values=values)
    flags.DEFINE_integer("export_seed", None, "Which of several students.", flag_values=values)


def given(values: flags.FlagValues, mode: str) -> Options | None:
    """Returns what the flags say, None in another mode.

    Raises:
      UserError: if they cannot mean anything, or stand with another mode.
    """
    if mode != MODE:
        for name in _FLAGS:
            if values[name].present:
                raise UserError(f"--{name} stands with --mode={MODE}, not with --mode={mode}")
        return None
    said = [name.strip() for name in (values["format"].value or "").split(",") if name.strip()]
    if not said:
        raise UserError(f"--format is missing, for example --format onnx; known: {', '.join(FORMATS)}")
    for name in said:
        if name not in FORMATS:
            raise UserError(f"--format: {unknown('format', name, FORMATS)}")
    quantize, tolerance = values["quantize"].value, values["tolerance"].value
    drop = float(values["max_drop"].value or 0.0)
    if quantize is not None and quantize not in QUANTIZE:
        raise UserError(f"--quantize: {unknown('quantisation', quantize, QUANTIZE)}")
    if quantize is not None and "litert" not in said:
        raise UserError(f"--quantize={quantize} is for litert, which --format={','.join(said)} leaves out")
    if quantize is None and values["max_drop"].present:
        raise UserError("--max_drop stands with --quantize=int8: it bounds what quantisation may lose")
    if not 0 <= drop <= 1:
        raise UserError(f"--max_drop is {drop}; it is a share of the test images, 0 to 1")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"--tolerance is {tolerance}; it must be 0 or more")
    formats = tuple(name for name in FORMATS if name in said)
    return Options(formats, quantize, drop, tolerance, values["export_seed"].value)
