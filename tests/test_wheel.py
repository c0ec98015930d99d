"""The built package: it holds all it needs, and works where this repository is not."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]

SCRIPT = """
import importlib, pathlib, pkgutil
import gkd_jax
assert pathlib.Path(gkd_jax.__file__).is_relative_to({site!r}), gkd_jax.__file__
for module in pkgutil.walk_packages(gkd_jax.__path__, "gkd_jax."):
    importlib.import_module(module.name)
from gkd_jax.main import main
raise SystemExit(main(["gkd_jax", "--config=digits.py", "--mode=shapes"]))
"""


@pytest.mark.slow
def test_a_wheel_works_elsewhere(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("gkd_jax", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={tmp_path}", str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("gkd_jax/")}
        licensed = any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gkd_jax").rglob("*.py")}
    more = {"native/convolution.cc", "py.typed", "recipes/published_cifar100.csv", "recipes/tuned.json"}
    assert held == files | {f"gkd_jax/{name}" for name in more}
    assert licensed

    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={site}", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "digits.py").write_text((ROOT / "configs" / "digits.py").read_text())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(site=str(site))],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "resnet8_eighth: 1,384 parameters" in done.stdout
    assert list(elsewhere.iterdir()) == [elsewhere / "digits.py"]
