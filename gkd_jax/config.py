"""The default configuration, its validation, and durations.

A configuration is an `ml_collections.ConfigDict`. A file under `configs/` starts from `default()`, changes what the
experiment needs, and returns it from `get_config`; the command line overrides single fields; `resolve` checks the whole
and fills in what was left open.
"""

import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from gkd_jax import curves
from gkd_jax.errors import UserError, nearest

Fields = Any  # a mapping or a ConfigDict, which is none to Python

NO_TEACHER = "none"
SEED_STRATEGIES = ("auto", "vmap", "shard", "unroll")
NO_CACHE = "none"
CACHES = (NO_CACHE, "logits", "embedding", "gradients")
"""What of the teacher is kept of every view: each holds what stands before it. Of images that are streamed, VIEWS."""
VIEWS = "views:"
"""What of the teacher is kept of K views of each image, "views:K"."""
RESIDENCIES = ("auto", "device", "host", "stream")
_OUTPUTS = ("logits", "embedding")  # each the first level whose caches hold it


def kept_views(cache: str) -> int | None:
    """Returns how many views of each image a cache keeps that keeps but some, K of "views:K"; None of another one."""
    count = cache.removeprefix(VIEWS)
    return int(count) if cache.startswith(VIEWS) and count.isdecimal() and int(count) > 0 else None


def held(cache: str) -> tuple[str, ...]:
    """Returns which of the teacher's outputs a cache of that level holds; "gradients" holds those in images as well."""
    if kept_views(cache):
        return _OUTPUTS[:1]
    return _OUTPUTS[: CACHES.index(cache)]


def optimizer(learning_rate: float = 0.05) -> ConfigDict:
    """Returns the standard recipe of CIFAR distillation (RepDistiller): drops at epochs 150, 180, 210 of 240."""
    return ConfigDict(
        {
            "learning_rate": learning_rate,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4,
            "schedule": "steps",
            "drops": ("62.5%", "75%", "87.5%"),
            "factor": 0.1,
            "warmup": placeholder("0%"),
        }
    )


def standard_rate(model: str) -> float:
    """Returns the learning rate of the standard recipe: 0.05, and 0.01 for mobile and shuffle nets."""
    return 0.01 if model.startswith(("mobilenet", "shufflenet")) else 0.05


def schedule(name: str = "constant", **given: Any) -> ConfigDict:
    """Returns the block of a schedule; it lists the parameters of all, so that a flag can change its name.

    Args:
      name: a key of `gkd_jax.curves.PARAMETERS`.
      **given: its parameters; the others keep their defaults.
    """
    parameters = {name for parameters in curves.PARAMETERS.values() for name in parameters}
    block = ConfigDict({"name": name})
    for parameter in sorted(parameters):
        block[parameter] = placeholder(given.pop(parameter, None))
    if given:
        raise UserError(f"no schedule has a parameter {next(iter(given))!r}")
    return block


def placeholder(value: Any) -> Any:
    """Returns a field that takes a value of any type, and may be left open."""
    field = config_dict.placeholder(object)
    if value is not None:
        field.set(value)
    return field


def default() -> ConfigDict:
    """Returns the default configuration: every field there is, with the standard CIFAR recipe."""
    config = ConfigDict()
    config.seed = 0
    config.recipe = config_dict.placeholder(str)  # what `gkd_jax.recipes` calls the objective: a label, no more
    config.seeds = ()  # several students in one program; replaces `seed`
    config.seed_strategy = "auto"  # how they share the machine: "vmap", "shard" or "unroll"
    config.seeds_share_batches = False  # one order and one view for all, and one pass of the teacher
    config.batch_seed = config_dict.placeholder(int)  # of order and views, where it is not the seed itself
    config.epochs = 240
    config.batch_size = 64
    config.compare_alone = False
    config.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.ema = 0.0
    config.deterministic = False  # on GPU: slower, and bit-equal from run to run
    config.checkpoint_every = placeholder("auto")  # epochs; auto: the best, the last, and others half a minute apart
    config.steps_per_call = placeholder("auto")  # steps a program: some hundred on accelerators, 1 on CPU
    config.cpu_devices = placeholder("auto")  # to share a batch among; see machine.prepare
    config.compilation_cache = "auto"  # a folder of the user's cache on accelerators, none on CPU; "off"; or a path
    config.tensorboard = True
    config.plots = True
    config.data = ConfigDict(
        {
            "source": "cifar100",
            "data_dir": config_dict.placeholder(str),
            "val_fraction": 0.0,
            "split_seed": 0,
            "num_train": config_dict.placeholder(int),  # images to train on, of those that are not held out
            "pad": 4,
            "flip": True,
            "num_classes": config_dict.placeholder(int),
            "residency": "auto",  # of the images: "device", "host" or "stream"
            "image_size": config_dict.placeholder(int),  # side of random-resized crops, of images that are streamed
            "workers": placeholder("auto"),  # processes that read these; one for each core but one, 0 for threads
        }
    )
    config.teacher = ConfigDict(
        {
            "model": "resnet56",
            "checkpoint": config_dict.placeholder(str),  # a finished run's directory, or pretrained:NAME
            "epochs": 240,
            "batch_size": 64,
            "seed": 0,
            "optimizer": optimizer(),
            "cache": "none",  # of its outputs on every view: "logits", "embedding" or "gradients"; "views:K", see VIEWS
            "cache_top": 10,  # classes of which "views:K" holds the probability
            "cache_memory": placeholder("auto"),  # GB on the device; half of what is free, 0 is the host's memory
            "cache_dir": "auto",  # a folder of the user's cache; "off"; or a path
        }
    )
    # With the teacher's classifier behind a trained projection instead of its own (SimKD)
    config.student = ConfigDict({"model": "resnet20", "reuse_classifier": False})
    config.objective = ConfigDict(
        {
            "mode": "sum",
            "ce": ConfigDict({"weight": 1.0, "label_smoothing": 0.0, "schedule": schedule()}),
            "schedule": schedule("gompertz", peak_value=0.9),
            "terms": ConfigDict(),
        }
    )
    config.optimizer = optimizer()
    return config


# ------------------------------------------------------------------------------------------ durations

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ep|%|)\s*")


def steps_in(duration: curves.Duration, steps_per_epoch: int, total_steps: int) -> int:
    """Returns a duration in steps.

    Args:
      duration: "20ep" is epochs, "10%" a share of the run, a plain number steps.
      steps_per_epoch: of the run.
      total_steps: of the run.

    Raises:
      UserError: if it is none of these.
    """
    match = _DURATION.fullmatch(str(duration))
    if match is None:
        raise UserError(f"a duration is '20ep' (epochs), '10%' (of the run) or a number of steps, not {duration!r}")
    number, unit = float(match[1]), match[2]
    if not unit and number != round(number):
        raise UserError(f"a duration without a unit is a whole number of steps, not {duration!r}; did you mean a '%'?")
    return round(number * {"ep": steps_per_epoch, "%": total_steps / 100, "": 1}[unit])


def steps_of(steps_per_epoch: int, epochs: int) -> Callable[[curves.Duration], int]:
    """Returns the function that turns durations into steps for a run."""
    return lambda duration: steps_in(duration, steps_per_epoch, epochs * steps_per_epoch)


# ----------------------------------------------------------------------------------------- validation


def _between(low: float, high: float, *, open_high: bool = False) -> tuple[Callable[[Any], bool], str]:
    if open_high:
        return lambda v: low <= v < high, f"at least {low} and below {high}"
    if math.isinf(high):
        return lambda v: low <= v < high, f"a finite number, {low} or above"
    return lambda v: low <= v <= high, f"between {low} and {high}"


def _one_of(*values: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v in values, "one of " + ", ".join(repr(v) for v in values)


def _duration(value: Any) -> bool:
    return _DURATION.fullmatch(str(value)) is not None


_OPTIMIZER = {
    "learning_rate": _between(0, math.inf),
    "momentum": _between(0, 1, open_high=True),
    "weight_decay": _between(0, math.inf),
    "schedule": _one_of("steps", "cosine"),
    "factor": _between(0, 1),
    "warmup": (_duration, "a duration such as '5ep', '2%' or 300"),
    "drops": (lambda v: all(map(_duration, v)), "durations such as ('150ep', '75%')"),
}


def _auto_or(low: float, what: str, *kinds: type) -> tuple[Callable[[Any], bool], str]:
    def allowed(value: Any) -> bool:
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return value == "auto" or (number and low <= value < math.inf)

    return allowed, f"'auto' or {what}, {low} or above"


def _seeds(value: Any) -> bool:
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in value)
    return whole and len({*value}) == len(value)


_folder: tuple[Callable[[Any], bool], str] = (lambda v: bool(v.strip()), "'auto', 'off' or the path of a folder")
# Fields that are a number or "auto"
_AUTO = ("checkpoint_every", "steps_per_call", "cpu_devices", "teacher.cache_memory", "data.workers")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _between(0, 2**32 - 1),
    "seeds": (_seeds, "different whole numbers from 0 to 2^32 - 1, such as (0, 1, 2, 3)"),
    "seed_strategy": _one_of(*SEED_STRATEGIES),
    "batch_seed": (lambda v: v is None or _seeds((v,)), "a whole number from 0 to 2^32 - 1"),
    "steps_per_call": _auto_or(1, "a whole number", int),
    "cpu_devices": _auto_or(1, "a whole number", int),
    "epochs": _between(1, 10**6),
    "batch_size": _between(1, 10**6),
    "dtype": _one_of("auto", "float32", "bfloat16"),
    "ema": _between(0, 1, open_high=True),
    "checkpoint_every": _auto_or(1, "a whole number", int),
    "data.val_fraction": _between(0, 1, open_high=True),
    "data.split_seed": _between(0, 2**32 - 1),
    "data.num_train": (lambda v: v is None or (isinstance(v, int) and v > 0), "a whole number, 1 or above"),
    "data.pad": _between(0, 1000),
    "data.residency": _one_of(*RESIDENCIES),
    "data.image_size": (lambda v: v is None or (isinstance(v, int) and 8 <= v <= 4096), "a whole number, 8 to 4096"),
    "data.workers": _auto_or(0, "a whole number", int),
    "teacher.epochs": _between(1, 10**6),
    "teacher.batch_size": _between(1, 10**6),
    "teacher.seed": _between(0, 2**32 - 1),
    "compilation_cache": _folder,
    "teacher.cache": (
        lambda v: v in CACHES or kept_views(v) is not None,
        "one of " + ", ".join(map(repr, CACHES)) + f", or {VIEWS + 'K'!r} with a whole number K, 1 or above",
    ),
    "teacher.cache_top": _between(1, 1 << 16),
    "teacher.cache_dir": _folder,
    "teacher.cache_memory": _auto_or(0, "a number of GiB", int, float),
    **{f"optimizer.{name}": rule for name, rule in _OPTIMIZER.items()},
    **{f"teacher.optimizer.{name}": rule for name, rule in _OPTIMIZER.items()},
}


def check(config: ConfigDict) -> None:
    """Checks every field but those of `objective`, which `gkd_jax.objective.resolve` knows.

    Raises:
      UserError: names the field that is unknown, missing, or of another type or range than it may be.
    """
    reference = default()
    _check_names(config, reference, "")
    for path, value in leaves(config):
        if path.startswith("objective."):
            continue
        check_type(path, value, _get(reference, path))
        rule = _RULES.get(path)
        if rule is not None and not rule[0](value):
            raise UserError(f"{path} must be {rule[1]}, not {value!r}")
    _check_streamed(config)


def _check_streamed(config: ConfigDict) -> None:
    """Raises `UserError` where fields do not go together with the way in which images are kept."""
    size, cache = config.data.image_size, config.teacher.cache
    if size is None and kept_views(cache):
        raise UserError(f"teacher.cache is {cache!r}, for random-resized crops: it needs data.image_size, their side")
    if size is not None and cache != NO_CACHE and not kept_views(cache):
        raise UserError(
            f"teacher.cache is {cache!r}, which keeps every view of an image; of random-resized crops, since "
            f"data.image_size is {size}, it keeps '{VIEWS}K'"
        )
    if size is not None and config.data.residency not in ("auto", "stream"):
        raise UserError(
            f"data.residency is {config.data.residency!r}, but data.image_size is {size}: random-resized crops are cut "
            "from encoded images, which are streamed; it must be 'stream' or 'auto'"
        )
    if size is None and config.data.residency == "stream":
        raise UserError("data.residency is 'stream', which needs data.image_size, the side of the random-resized crops")


def _check_names(config: Fields, reference: Fields, prefix: str) -> None:
    for name in config:
        if name not in reference:
            raise UserError(f"unknown configuration field {prefix + name!r}{nearest(name, reference)}")
    for name in reference:
        if name not in config:
            raise UserError(f"the configuration lacks the field {prefix + name!r}; start from gkd_jax.config.default()")
        given, has_fields = config[name], isinstance(config[name], Mapping | ConfigDict)
        if isinstance(reference[name], ConfigDict) != has_fields:
            what = "be a value, not fields" if has_fields else f"hold fields, not {given!r}"
            raise UserError(f"{prefix + name} must {what}")
        # What stands below these depends on the schedules and terms that are named there.
        if has_fields and prefix + name not in ("objective.terms", "objective.ce", "objective.schedule"):
            _check_names(given, reference[name], f"{prefix}{name}.")


def check_type(path: str, value: Any, expected: Any) -> None:
    """Raises `UserError` unless `value` is of the type of `expected`, the default of the field `path`.

    A default of None says nothing; an integer will do for a float, but True is no number.
    """
    if expected is None:
        return
    allowed: tuple[type, ...] = (type(expected),)
    if isinstance(expected, float):
        allowed = (float, int)
    if isinstance(expected, tuple | list):
        allowed = (tuple, list)
    if path in _AUTO:
        return  # its rule says what it may be
    if path.endswith(".warmup"):
        allowed = (str, int, float)
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(expected, bool)):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise UserError(f"{path} must be of type {names}, not {value!r}")


def leaves(config: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every field below a configuration as (dotted path, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _get(config: Fields, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config


def override_error(config: ConfigDict, path: str) -> UserError | None:
    """Returns the error for a flag that overrides the field `path`, which `config` has not; None if it has it."""
    place: Any = config
    for i, name in enumerate(path.split(".")):
        if not isinstance(place, ConfigDict) or name not in place:
            known = list(place) if isinstance(place, ConfigDict) else []
            where = ".".join(path.split(".")[:i]) or "the configuration"
            has = f"{where} has: {', '.join(known)}" if known else f"{where} has no fields below it"
            return UserError(f"unknown configuration field {path!r}{nearest(name, known)}; {has}")
        place = place.get(name)
    return None


def cache_folder(field: str, name: str) -> pathlib.Path | None:
    """Returns the folder that a field names for what is kept between runs.

    Args:
      field: "off"; "auto" for the folder `name` of the user's cache; or a path.
      name: of what is kept.
    """
    if field == "off":
        return None
    return (pathlib.Path("~/.cache/gkd_jax") / name if field == "auto" else pathlib.Path(field)).expanduser()
