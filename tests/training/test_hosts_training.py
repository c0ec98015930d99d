"""What several processes change in training, where it can be seen in one: the processes are played."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caches import ROWS, SIZE, Teacher, check

from gkd_jax import hosts
from gkd_jax.errors import UserError
from gkd_jax.hosts import watching
from gkd_jax.training import devices, sharing, tables, workdir
from gkd_jax.training.devices import fetch, mesh, put, replicated
from gkd_jax.training.program import Program
from gkd_jax.training.stop import Stop, Together, together


@pytest.fixture
def several(monkeypatch):
    """Two processes, of which this one is the first, and the other says the same."""
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "exchange", lambda text: [text, text])


# ------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("spec", [jax.P(), jax.P("data")])
def test_arrays_are_put_where_devices_of_others_are_as_device_put_does(monkeypatch, spec):
    where = jax.sharding.NamedSharding(mesh(jax.devices()), spec)
    tree = {
        "a": np.arange(12, dtype=np.uint8).reshape(6, 2),
        "b": jnp.arange(4.0),
        "k": jax.random.split(jax.random.key(3), 2),
    }
    expected = put(tree, where)
    spread = jax.tree.map(lambda x: devices._spread(x, where), tree)
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(spread), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)
    again = devices._spread(spread["a"], where)
    assert again is spread["a"]


def test_arrays_in_parts_are_fetched_whole():
    many = mesh(jax.devices())
    x = put(np.arange(6.0), jax.sharding.NamedSharding(many, jax.P("data")))
    whole = devices._moving(replicated(many))(x)
    assert whole.is_fully_replicated
    np.testing.assert_array_equal(whole, np.arange(6.0))
    found = fetch({"a": x, "b": 3, "c": np.ones(2)})
    np.testing.assert_array_equal(found["a"], np.arange(6.0))
    assert found["b"] == 3


# ------------------------------------------------------------------------------------------------ the mesh


@pytest.mark.parametrize(("seeds", "count", "one", "many"), [(3, 4, 3, 1), (4, 6, 4, 2), (6, 4, 3, 2), (2, 8, 2, 2)])
def test_groups_of_devices(monkeypatch, seeds, count, one, many):
    assert sharing.groups(seeds, count) == one
    monkeypatch.setattr(hosts, "several", lambda: True)
    assert sharing.groups(seeds, count) == many


def test_every_device_has_a_part_of_the_batch(make_job, several):
    with pytest.raises(UserError) as caught:
        Program(make_job(batch_size=15))
    assert str(caught.value) == (
        "batch_size is 15, which the 2 devices of 2 processes cannot share evenly; it must be a multiple of 2"
    )
    assert len(Program(make_job(batch_size=16)).devices) == 2
    assert len(Program(make_job(batch_size=15, seeds=(0, 1))).devices) == 2  # one seed on each
    with pytest.raises(UserError, match="it must be a multiple of 2"):
        Program(make_job(batch_size=15, seeds=(0, 1), seed_strategy="unroll"))
    three = Program(make_job(batch_size=16, seeds=(0, 1, 2)))  # which two devices cannot share out
    assert (three.strategy, len(three.devices)) == ("unroll", 2)


def test_groups_of_seeds_are_named(monkeypatch, several):
    monkeypatch.setattr(jax, "device_count", lambda backend=None: 8)
    given = {"batch_size": 6, "seeds": [0, 1], "seed_strategy": "auto"}
    with pytest.raises(UserError, match="4 for each of 2 groups of seeds cannot share evenly; .* a multiple of 4"):
        sharing.check_shared(given)
    sharing.check_shared({**given, "batch_size": 12})


def test_a_pointwise_student_too_has_all_devices(make_job, several):
    assert len(Program(make_job({}, taught=False, student__model="mobilenetv2_half")).devices) == 2


# ------------------------------------------------------------------------------------------------ stopping


class Look(watching.Watch):
    """A watch that has agreed to stop at the third point."""

    points = 0

    def __init__(self):
        pass

    def listen(self, wish):
        self.wish = wish

    def passed(self):
        self.points += 1
        return signal.SIGINT if self.points >= 3 else None


def test_all_stop_where_they_have_agreed(monkeypatch, several):
    look = Look()
    monkeypatch.setattr(watching, "_watch", look)
    here = Stop()
    agreed = together(here)
    assert isinstance(agreed, Together)
    here.requested = signal.SIGTERM
    assert look.wish() == signal.SIGTERM
    assert [agreed.requested for _ in range(3)] == [None, None, signal.SIGINT]


def test_at_the_end_all_stop_if_one_was_asked(monkeypatch, several):
    monkeypatch.setattr(watching, "_watch", Look())
    agreed = together(Stop())
    monkeypatch.setattr(hosts, "exchange", lambda text: [text, "15"])
    assert agreed.at_end() == signal.SIGTERM
    monkeypatch.setattr(hosts, "exchange", lambda text: [text, ""])
    assert together(Stop()).at_end() is None


def test_one_process_is_asked_as_ever():
    asked = Stop()
    assert together(asked) is asked
    assert together(None) is None
    asked.requested = signal.SIGTERM
    assert asked.at_end() == signal.SIGTERM


def test_a_handler_that_is_none_of_pythons_becomes_the_usual_one():
    before = signal.getsignal(signal.SIGTERM)
    try:
        asked = Stop()
        with asked:
            asked._before[signal.SIGTERM] = None  # as where a library has installed its own
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------------ files


def test_a_directory_that_is_not_shared_is_refused(tmp_path, monkeypatch, several):
    monkeypatch.setattr(workdir, "_SEEN", 0.0)
    monkeypatch.setattr(hosts, "index", lambda: 1)
    with pytest.raises(UserError) as caught:
        workdir.shared(tmp_path)
    assert str(caught.value) == (
        f"process 1 of 2 does not find in {tmp_path} what process 0 wrote there; the --workdir of several processes "
        "must be on a file system that all of them share"
    )
    (tmp_path / "config.json").touch()
    workdir.shared(tmp_path)


def test_the_first_process_locks_for_all(tmp_path, monkeypatch, several):
    with workdir.alone_in(tmp_path):
        assert workdir.held(tmp_path)
        with pytest.raises(workdir.AtWork, match="another process is at work on this run"), workdir.alone_in(tmp_path):
            pass
    assert not workdir.held(tmp_path)


# ------------------------------------------------------------------------------------------------ caches


def test_what_one_process_does_not_find_is_computed_by_all(make_cache, tmp_path, monkeypatch, several):
    everything = np.arange(SIZE)
    make_cache(Teacher(), tmp_path).fill_all()
    # The other process finds all but three
    monkeypatch.setattr(hosts, "on_all", lambda mask: mask & ~np.isin(everything, [1, 2, 9]))
    teacher = Teacher()
    second = make_cache(teacher, tmp_path)
    assert (second.from_disk, second.missing) == (SIZE - 3, 3)
    second.fill(everything)
    assert teacher.asked == [1, 2, 9]
    check(second, make_cache, everything)


def test_the_first_process_writes_the_rows_for_all(make_cache, tmp_path, monkeypatch, several):
    monkeypatch.setattr(hosts, "first", lambda: False)
    monkeypatch.setattr(hosts, "first_does", lambda function: None)
    cache = make_cache(Teacher(), tmp_path)
    cache.fill_all()
    check(cache, make_cache, np.arange(SIZE))
    assert not list(tmp_path.rglob("*.npz"))


def test_what_does_not_fit_one_process_fits_none(monkeypatch, several):
    monkeypatch.setattr(hosts, "least", lambda number: min(number, 100))
    with pytest.raises(tables.TooLarge, match="of the 100 that are available"):
        tables.on_host(ROWS, SIZE)
