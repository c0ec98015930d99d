"""The peer in a process of its own, which answers one line of JSON with one line of JSON.

    python -m experiments.torch_peer.worker

The first line is the setup; every later one asks for some steps, the last for what was counted:

    {"pair": ["resnet56", "resnet20"], "objective": "kd", "batch": 64, "num_classes": 100,
     "setting": {"channels_last": false, "compiled": false, "autocast": false, "graphs": false}, "student_only": false,
     "device": "auto", "threads": null, "seed": 0, "images": null}
    -> {"ready": true, "compile_seconds": 1.5, "device": "cpu", "torch": "2.13.0", ...} or {"unsupported": "why"}
    {"steps": 20} -> {"seconds": 3.1, "steps": 20}
    {"finish": true} -> {"peak_bytes": 700000000, "ops_per_step": 900}, or "launches_per_step" on a GPU

`images` is the path of an npz with `x_train` and `y_train`; without one they are noise, which costs the same. The
first step's seconds are `compile_seconds`. What is no answer goes to the standard error.
"""

import json
import resource
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from experiments.bench.protocol import Answer, answer_all, on_standard_streams
from experiments.torch_peer.loop import Peer, Setting, Unsupported

_WARMUP = 3
_NOISE = 4096
_PROFILED = 2


def build(setup: Mapping[str, Any]) -> tuple[Peer, dict[str, Any]]:
    """Returns a warm peer and what to say about it.

    Raises:
      Unsupported: if PyTorch cannot run it.
    """
    if setup.get("threads"):
        torch.set_num_threads(setup["threads"])
    torch.manual_seed(setup.get("seed", 0))
    name = setup.get("device", "auto")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    # What such projects set: cuDNN times its algorithms at the first step, and keeps the fastest
    torch.backends.cudnn.benchmark = True
    images, labels = _data(setup.get("images"), setup["num_classes"], setup.get("seed", 0))
    start = time.perf_counter()
    peer = Peer(
        tuple(setup["pair"]),
        setup["objective"],
        setup["batch"],
        setup["num_classes"],
        Setting(**setup["setting"]),
        setup.get("student_only", False),
        torch.from_numpy(images),
        torch.from_numpy(labels),
        device,
    )
    built = time.perf_counter() - start
    try:
        first = peer.run(1)
        peer.run(_WARMUP)
    except TorchDynamoException as error:
        raise Unsupported(f"torch.compile failed: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        if not setup["setting"].get("graphs"):
            raise
        raise Unsupported(f"CUDA graphs failed: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of training, not of cuDNN's trials
    return peer, {
        "ready": True,
        "compile_seconds": first,
        "build_seconds": built,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "float32_precision": {
            "matmul": torch.get_float32_matmul_precision(),
            "conv": "tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
        },
    }


def finish(peer: Peer) -> dict[str, Any]:
    """Returns the peak memory in bytes, of the device or else of the process, and the kernels or operators a step.

    On CPU an operator that others are part of counts once.
    """
    if peer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(peer.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as measured:
            peer.run(_PROFILED)
        launches = sum(
            event.device_type == DeviceType.CUDA
            and not event.is_user_annotation  # spans such as the optimiser's stand among the kernels
            and not event.name.startswith(("Memcpy", "Memset"))
            for event in measured.events()
        )
        return {"peak_bytes": peak, "launches_per_step": launches / _PROFILED}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        peer.run(_PROFILED)
    operators = sum(_is_operator(event) and not _is_operator(event.cpu_parent) for event in measured.events())
    return {"peak_bytes": peak, "ops_per_step": operators / _PROFILED}


def _is_operator(event: Any) -> bool:
    return event is not None and event.name.startswith("aten::")


def _data(path: str | None, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if path is None:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (_NOISE, 32, 32, 3), np.uint8), rng.integers(0, num_classes, _NOISE)
    with np.load(path) as arrays:
        return arrays["x_train"], arrays["y_train"].astype(np.int64)


def serve(lines: Any, answer: Answer) -> None:
    """Answers `lines` until one says "finish", or they end."""
    try:
        peer, ready = build(json.loads(next(lines)))
    except Unsupported as error:
        answer({"unsupported": str(error)})
        return
    answer(ready)

    def run(steps: int) -> dict[str, Any]:
        return {"seconds": peer.run(steps), "steps": steps}

    answer_all(lines, answer, run, lambda: finish(peer))


if __name__ == "__main__":
    on_standard_streams(serve)
