"""What is settled before JAX starts, seen from processes of its own."""

import ctypes
import os
import subprocess
import sys

import pytest

from gkd_jax import native

LOOK = """
import ctypes, os
called = []
real = ctypes.CDLL
class Library:
    def __init__(self, name): pass
    def mallopt(self, option, value): called.append((option, value))
ctypes.CDLL = lambda name, *a, **k: Library(name) if name is None else real(name, *a, **k)
from gkd_jax import machine
machine.prepare({given})
ctypes.CDLL = real
import jax
print(len(jax.devices()), sorted(called), os.environ.get("XLA_FLAGS"))
"""
ALL = [(-8, 1), (-4, 0), (-1, -1)]


def look(given="", **variables):
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    env = {**inherited, "JAX_PLATFORMS": "cpu", **variables}
    found = subprocess.run(
        [sys.executable, "-c", LOOK.replace("{given}", given)], env=env, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.slow
def test_devices_of_a_cpu_and_an_allocator_that_keeps_its_memory():
    cores = min(2, len(os.sched_getaffinity(0)))
    assert look(GKD_JAX_NATIVE="off") == f"{cores} {ALL} None"
    if native.available():  # kernels of our own use all cores of one device
        assert look() == f"1 {ALL} None"
    assert look("3") == f"3 {ALL} None"
    assert look("1, deterministic=True") == f"1 {ALL} --xla_gpu_deterministic_ops=true"


@pytest.mark.slow
def test_what_the_user_has_set_stays():
    assert look(JAX_NUM_CPU_DEVICES="3") == f"3 {ALL} None"
    flag = "--xla_force_host_platform_device_count=4"
    assert look(XLA_FLAGS=flag).startswith("4 ")
    assert look(MALLOC_ARENA_MAX="2", JAX_NUM_CPU_DEVICES="1") == f"1 {ALL[1:]} None"


@pytest.mark.slow
def test_a_number_of_devices_that_comes_too_late_is_told():
    code = "import jax; n = len(jax.devices()); from gkd_jax import machine; machine.prepare(3); print(n)"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"
    assert "cpu_devices=3 has no effect, since JAX has started with 1" in found.stderr


HEAPS = """
import ctypes, os, threading
{run}
threads = [threading.Thread(target=lambda: [bytearray(3000) for _ in range(100)]) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL(None).malloc_stats()
"""
WITH_A_THREAD_FROM_THE_START = {
    "grid": 'from experiments.grid import worker; worker.main(["no_such_task.json", "--leash"])',
    "notebook": 'from gkd_jax.notebook import child; child.run(["child", str(os.getppid()), "--no_such_flag"])',
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="the allocator is not glibc's")
@pytest.mark.parametrize("process", WITH_A_THREAD_FROM_THE_START)
def test_all_threads_share_the_heap_that_keeps_its_memory(process):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {"JAX_PLATFORMS": "cpu"}
    code = HEAPS.replace("{run}", WITH_A_THREAD_FROM_THE_START[process])
    ours, never_written = os.pipe()  # an input that ends would be the worker's sign to stop
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, stdin=ours, capture_output=True, text=True, check=True
    )
    os.close(ours), os.close(never_written)
    assert found.stderr.startswith("gkd_jax: ")
    assert found.stderr.count("Arena ") == 1
