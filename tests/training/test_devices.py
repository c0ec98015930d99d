"""Which devices of a machine train a student, and how its step is compiled for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd_jax.training import devices
from gkd_jax.training.program import Program


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"student__model": "resnet8"}, 2),
        ({"student__model": "mobilenetv2_half"}, 1),
        ({"student__model": "mobilenetv2_half", "cpu_devices": 2}, 2),
        ({"student__model": "mobilenetv2_half", "seeds": (3, 11)}, 2),
        ({"student__model": "mobilenetv2_half", "seeds": (3, 11), "seed_strategy": "unroll"}, 1),
    ],
)
def test_mostly_pointwise_students_have_one_device_of_a_cpu(make_job, fields, count):
    assert len(Program(make_job({}, taught=False, **fields)).devices) == count


def _lowered():
    x = jnp.arange(64 * 64 * 72, dtype=jnp.float32).reshape(64, 64, 72) % 7
    return jax.jit(lambda x: jnp.sum(x * jnp.roll(x, 1, 2), (0, 1))).lower(x), x


def test_sums_are_fused_with_what_is_summed():
    lowered, x = _lowered()
    compiled = devices.with_fused_sums(lowered)
    assert "ynn" not in compiled.as_text()
    np.testing.assert_allclose(compiled(x), np.sum(np.asarray(x) * np.roll(x, 1, 2), (0, 1)), rtol=1e-6)


def test_an_older_jaxlib_compiles_as_it_can(monkeypatch):
    monkeypatch.setattr(devices, "_FUSED_SUMS", {"xla_no_such_option": "1"})
    lowered, x = _lowered()
    np.testing.assert_array_equal(devices.with_fused_sums(lowered)(x), lowered.compile()(x))


def test_what_else_goes_wrong_is_raised():
    class Refusing:
        def compile(self, compiler_options=None):
            raise jax.errors.JaxRuntimeError("out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        devices.with_fused_sums(Refusing())
