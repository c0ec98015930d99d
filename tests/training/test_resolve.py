"""From what was written to what is run: the seeds and the compute type."""

import types

import pytest

from gkd_jax import config
from gkd_jax.errors import UserError
from gkd_jax.training import resolve as resolving
from gkd_jax.training.resolve import resolve


def settled(**fields):
    """Returns seed, seeds, seeds_share_batches and batch_seed as they are run."""
    given = config.default()
    given.teacher.model = config.NO_TEACHER
    for name, value in fields.items():
        given[name] = value
    resolved = resolve(given)
    return tuple(resolved[name] for name in ("seed", "seeds", "seeds_share_batches", "batch_seed"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, [], False, None)),
        ({"seed": 5}, (5, [], False, None)),
        ({"seeds": (5, 2)}, (5, [5, 2], False, None)),
        ({"seeds": (5, 2), "seed": 8}, (5, [5, 2], False, None)),  # `seeds` replaces `seed`
        ({"seeds": (5,)}, (5, [], False, None)),
        ({"seeds": (5, 2), "seeds_share_batches": True}, (5, [5, 2], True, None)),
        ({"seeds": (5, 2), "seeds_share_batches": True, "batch_seed": 9}, (5, [5, 2], True, 9)),
        # An order of one's own is the same run as none
        ({"seeds": (5, 2), "seeds_share_batches": True, "batch_seed": 5}, (5, [5, 2], True, None)),
        ({"seed": 5, "batch_seed": 5}, (5, [], False, None)),
        ({"seed": 5, "batch_seed": 9}, (5, [], False, 9)),
        ({"seeds": (5,), "batch_seed": 5}, (5, [], False, None)),
        ({"seeds": (5,), "batch_seed": 9}, (5, [], False, 9)),
    ],
)
def test_one_way_to_say_the_same(fields, expected):
    assert settled(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"seeds_share_batches": True},
            r"^seeds_share_batches = true needs two seeds or more in the field seeds, not \(\)$",
        ),
        (
            {"seeds_share_batches": True, "seeds": (4,)},
            r"^seeds_share_batches = true needs two seeds or more in the field seeds, not \(4,\)$",
        ),
        ({"batch_seed": 9, "seeds": (5, 2)}, "^batch_seed is one order for all: .* needs seeds_share_batches = true$"),
        # Also where it is the first one's: the second has another
        ({"batch_seed": 5, "seeds": (5, 2)}, "^batch_seed is one order for all"),
        ({"seeds": (5, 5)}, "^seeds must be different whole numbers"),
    ],
)
def test_seeds_that_contradict_one_another(fields, message):
    with pytest.raises(UserError, match=message):
        settled(**fields)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"platform": "cpu"}, "float32"),
        ({"platform": "tpu"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "7.5"}, "float32"),  # a T4 would convert each convolution
        ({"platform": "gpu", "compute_capability": "8.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "10.0"}, "bfloat16"),
        ({"platform": "gpu", "compute_capability": "gfx942"}, "bfloat16"),  # of AMD
    ],
)
def test_the_type_that_a_device_computes_fast_in(monkeypatch, device, expected):
    monkeypatch.setattr(resolving.jax, "devices", lambda: [types.SimpleNamespace(**device)])
    assert resolve(config.default())["dtype"] == expected
