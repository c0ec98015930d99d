import numpy as np
import pytest

from gkd_jax.training import cost


def simulated(
    missing: int, *, examples: int, views: int, epochs: int, draws: int, seeds: int, batch: int, runs: int = 300
) -> float:
    """Mean number of forwards when each seed draws `draws` examples without replacement, and a view of each."""
    rng = np.random.default_rng(0)
    total = 0
    for _ in range(runs):
        held = np.ones(examples * views, np.bool_)
        held[rng.permutation(examples * views)[:missing]] = False
        for _ in range(epochs):
            drawn = np.concatenate(
                [rng.permutation(examples)[:draws] * views + rng.integers(0, views, draws) for _ in range(seeds)]
            )
            new = int((~held[np.unique(drawn)]).sum())
            held[drawn] = True
            total += -(-new // batch) * batch
    return total / runs


@pytest.mark.parametrize(
    ("missing", "shape"),
    [
        (5400, {"examples": 600, "views": 9, "epochs": 12, "draws": 576, "seeds": 1, "batch": 64}),
        (5400, {"examples": 600, "views": 9, "epochs": 12, "draws": 576, "seeds": 4, "batch": 64}),
        (2000, {"examples": 600, "views": 9, "epochs": 12, "draws": 600, "seeds": 2, "batch": 32}),
        (5400, {"examples": 600, "views": 9, "epochs": 60, "draws": 600, "seeds": 1, "batch": 128}),  # a long tail
        (540, {"examples": 60, "views": 9, "epochs": 40, "draws": 60, "seeds": 1, "batch": 4}),
        (60, {"examples": 60, "views": 1, "epochs": 3, "draws": 45, "seeds": 1, "batch": 8}),
        # In this one the second epoch takes more than one batch in but a fifth of the runs
        (128, {"examples": 64, "views": 2, "epochs": 2, "draws": 64, "seeds": 1, "batch": 35}),
        # And here are more seeds than views
        (540, {"examples": 60, "views": 9, "epochs": 5, "draws": 60, "seeds": 12, "batch": 16}),
        # These look up as many views as one seed could
        (120, {"examples": 60, "views": 2, "epochs": 3, "draws": 20, "seeds": 3, "batch": 4}),
    ],
)
def test_by_epoch_is_what_a_simulation_counts(missing: int, shape: dict[str, int]) -> None:
    given = {name: shape[name] for name in ("epochs", "batch", "seeds")}
    expected = cost.by_epoch(
        missing,
        size=shape["examples"] * shape["views"],
        per_epoch=shape["draws"] * shape["seeds"],
        **given,
    )
    assert expected == pytest.approx(simulated(missing, **shape), rel=0.01)


def test_closed_forms() -> None:
    once = {"size": 500, "epochs": 7, "per_epoch": 500, "seeds": 1}
    assert cost.by_epoch(500, batch=64, **once) == 512  # with one view all is there after the first epoch
    assert cost.by_epoch(500, batch=100, **once) == 500
    assert cost.by_epoch(0, batch=64, **once) == 0
    # Every lookup of a first epoch is new: 576 are 9 full batches, and 577 are 10
    assert cost.by_epoch(5400, size=5400, epochs=1, per_epoch=576, batch=64, seeds=1) == 576
    assert cost.by_epoch(5400, size=5400, epochs=1, per_epoch=577, batch=64, seeds=1) == 640
    # In batches of one there is no padding: 8.1 million views, of which 240 epochs see 1 - (1 - 1/162)^240
    size = 50_000 * 162
    assert cost.by_epoch(size, size=size, epochs=240, per_epoch=50_000, batch=1, seeds=1) == pytest.approx(
        size * (1 - (161 / 162) ** 240), rel=1e-6
    )
    assert cost.up_front(size, 512) == 8_100_352
    assert cost.up_front(0, 512) == 0
