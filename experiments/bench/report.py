"""From rates to what is reported: medians, spread, ratios, a file of JSON and a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.protocol import OBJECTIVES

EPOCH = 50_000

# What a process says of itself and a reader must know
_SAID = ("dtype", "devices", "convolutions", "steps_per_call", "seed_strategy", "threads", "float32_precision")


def side(rates: Sequence[float], ready: Mapping[str, Any], counted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is reported of one loop: the median of its images a second, and their range."""
    return {
        "images_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "compile_seconds": ready["compile_seconds"],
        **{name: ready[name] for name in _SAID if ready.get(name) is not None},
        **counted,
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median of ours over theirs, window by window: a machine that drifts slows both of a pair."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def verdict(peers: Mapping[str, Mapping[str, Any]], field: Sequence[str]) -> dict[str, Any]:
    """Returns what our rate is over the peer's, in the better of the field's settings and in the best of all.

    The better setting is that over which ours is least: the one that is fastest window by window.

    Args:
      peers: by setting, from `side`, with their "ratio"; or with "unsupported", and left out.
      field: settings of the loop that distillation projects have, in either layout.

    Returns:
      "better_layout" with its "peer" and "ratio", and "fastest" with its "ratio_fastest"; nothing without a peer.
    """
    able = {name: peer["ratio"] for name, peer in peers.items() if "unsupported" not in peer}
    if not able:
        return {}
    layout = min((name for name in able if name in field), key=able.__getitem__)
    fastest = min(able, key=able.__getitem__)
    return {
        "peer": peers[layout],
        "ratio": able[layout],
        "better_layout": layout,
        "fastest": fastest,
        "ratio_fastest": able[fastest],
    }


def roofline(
    ours: Mapping[str, Any], images: int, bytes_per_second: float, flops_per_second: float
) -> dict[str, float]:
    """Returns the share of the images a second that the machine's two rates would allow for XLA's count of the work.

    Without a count there is nothing to return.

    Args:
      ours: from `side`; its counts are those of one device, of which a CPU's are parts of the whole machine.
      images: of a step, over all devices.
      bytes_per_second: of one accelerator, or of the machine.
      flops_per_second: likewise.
    """
    if ours["flops"] is None:
        return {}
    step = max(ours["bytes"] / bytes_per_second, ours["flops"] / flops_per_second)
    return {
        "bytes_per_second": bytes_per_second,
        "flops_per_second": flops_per_second,
        "images_per_second": images / step,
        "share": ours["images_per_second"] * step / images,
    }


def whole_run(steady: float, fill: Mapping[str, Any], epochs: int, seeds: int) -> dict[str, float]:
    """Returns seconds and images a second of a run of `epochs` with the fill of its cache in it."""
    images = epochs * EPOCH * seeds
    seconds = images / steady + fill["seconds"]
    return {"epochs": epochs, "seconds": seconds, "images_per_second": images / seconds}


def table(found: Mapping[str, Any]) -> str:
    """Returns a benchmark as Markdown."""
    setup, ours = found["setup"], found["ours"]
    teacher, student = setup["pair"]
    more = f", {setup['seeds']} seeds ({ours['seed_strategy']})" if setup["seeds"] > 1 else ""
    if "w" in OBJECTIVES[setup["objective"]]:
        more += f"; Sinkhorn's solver: {setup['solver']}" + ", the peer's a loop in PyTorch" * bool(found["peers"])
    more += "; the teacher's outputs are given to both" if setup["student_only"] else ""
    lines = [
        f"### {teacher} to {student}, {setup['objective']}, cache {setup['cache']}, batch {setup['batch']}{more}",
        "",
        f"{found['device']}, {found['date']}: `{found['command']}`",
        "",
        "| loop | images a second | lowest to highest | ours / it | compile (s) | peak memory (MB) |",
        "|---|---|---|---|---|---|",
        _row(f"gkd_jax, {ours['dtype']}", ours, None),
    ]
    for name, peer in found["peers"].items():
        if "unsupported" in peer:
            lines.append(f"| PyTorch, {name} | not supported: {peer['unsupported']} | | | | |")
        else:
            lines.append(_row(f"PyTorch, {name}", peer, peer["ratio"]))
    lines.append("")
    if "ratio" in found:
        lines.append(f"Ours / the field's loop in its better layout: {found['ratio']:.2f}")
        lines.append(f"Ours / PyTorch's fastest setting ({found['fastest']}): {found['ratio_fastest']:.2f}")
    if found.get("fill"):
        fill, whole = found["fill"], found["whole_run"]
        mark = " (extrapolated from a measured part)" if fill["extrapolated"] else ""
        lines.append(
            f"The fill of the cache, {fill['how']}: {fill['forwards']:,} views at {fill['images_per_second']:,.0f} a "
            f"second, {fill['seconds']:,.0f} s{mark}; over {whole['epochs']} epochs with it "
            f"{whole['images_per_second']:,.0f} images a second"
        )
    if limit := found["roofline"]:
        lines.append(
            f"Share of the roofline: {limit['share']:.0%} (XLA counts {ours['flops'] / 1e9:.1f} GFLOP and "
            f"{ours['bytes'] / 1e6:.0f} MB a step, kernels of our own and of libraries as plain convolutions; "
            f"measured {limit['flops_per_second'] / 1e12:.2f} TFLOP/s, "
            f"{limit['bytes_per_second'] / 1e9:.0f} GB/s)"
        )
    return "\n".join([*lines, ""])


def _row(name: str, measured: Mapping[str, Any], ratio: float | None) -> str:
    low, high = measured["spread"]
    return (
        f"| {name} | {measured['images_per_second']:,.0f} | {low:,.0f} to {high:,.0f} | "
        f"{'' if ratio is None else f'{ratio:.2f}'} | {measured['compile_seconds']:.1f} | "
        f"{measured['peak_bytes'] / 1e6:,.0f} |"
    )
