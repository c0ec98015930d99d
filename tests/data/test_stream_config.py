"""The fields of a configuration that streaming brought."""

import pytest

from gkd_jax import config
from gkd_jax.errors import UserError


def checked(**fields):
    given = config.default()
    for path, value in fields.items():
        place = given
        *parents, name = path.split("__")
        for parent in parents:
            place = place[parent]
        place[name] = value
    config.check(given)
    return given


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data__residency": "host"},
        {"data__image_size": 224, "data__workers": 16},
        {"data__image_size": 224, "data__residency": "stream", "data__workers": 0},
        {"data__image_size": 224, "teacher__cache": "views:30", "teacher__cache_top": 20},
    ],
)
def test_what_is_allowed(fields):
    checked(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__residency": "disk"}, "data.residency must be one of 'auto', 'device', 'host', 'stream', not 'disk'"),
        ({"data__workers": -1}, "data.workers must be 'auto' or a whole number, 0 or above, not -1"),
        ({"data__workers": 1.5}, "data.workers must be 'auto' or a whole number"),
        ({"data__image_size": 4}, "data.image_size must be a whole number, 8 to 4096, not 4"),
        (
            {"teacher__cache": "views:0"},
            "teacher.cache must be one of .*, or 'views:K' with a whole number K, 1 or above",
        ),
        ({"teacher__cache": "views:x"}, "teacher.cache must be one of"),
        ({"teacher__cache": "views"}, "teacher.cache must be one of"),
        ({"teacher__cache_top": 0}, "teacher.cache_top must be between 1 and 65536, not 0"),
        (
            {"teacher__cache": "views:4"},
            "teacher.cache is 'views:4', for random-resized crops: it needs data.image_size",
        ),
        ({"data__image_size": 64, "teacher__cache": "logits"}, "of random-resized crops, .*, it keeps 'views:K'"),
        (
            {"data__image_size": 64, "data__residency": "device"},
            "data.residency is 'device', but data.image_size is 64",
        ),
        ({"data__residency": "stream"}, "data.residency is 'stream', which needs data.image_size"),
    ],
)
def test_what_is_not(fields, message):
    with pytest.raises(UserError, match=message):
        checked(**fields)


def test_what_a_cache_of_some_views_holds():
    assert config.kept_views("views:30") == 30
    assert config.kept_views("logits") is None
    assert config.held("views:30") == ("logits",)
