"""What logits are worth, against scikit-learn, SciPy and loops over the definitions."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, top_k_accuracy_score

from gkd_jax.outputs import Model, Outputs
from gkd_jax.training import quality
from gkd_jax.training.evaluate import Evaluator


def drawn(seed, n=200, classes=10, scale=3.0, dtype=np.float32):
    """Returns logits that know something of their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) * scale
    logits[np.arange(n), labels] += rng.normal(size=n) * scale
    return logits.astype(dtype), labels


def by_loop(logits, labels, bins=15):
    """Returns the expected calibration error by its definition, one bin after the other."""
    probabilities = softmax(np.asarray(logits, np.float64), -1)
    error = 0.0
    for m in range(1, bins + 1):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if (m - 1) / bins < row.max() <= m / bins
        ]
        if inside:
            confidence = math.fsum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("classes", [6, 10, 100])
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 1000.0])
def test_against_other_implementations(classes, scale):
    logits, labels = drawn(classes, classes=classes, scale=scale)
    if scale == 0:
        logits = logits + np.arange(classes, dtype=np.float32) * 1e-3  # no ties, which others break otherwise
    found = quality.rate(logits, labels)
    assert all(type(value) is float for value in found.values())
    names = np.arange(classes)
    assert found["accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1, labels=names), abs=0)
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names), abs=0)
    if scale < 1000:  # where scikit-learn clips probabilities of 0
        expected = log_loss(labels, softmax(logits.astype(np.float64), -1), labels=names)
        assert found["nll"] == pytest.approx(expected, rel=1e-12)
    wide = log_softmax(logits.astype(np.float64), -1)
    assert found["nll"] == pytest.approx(-np.mean([row[label] for row, label in zip(wide, labels, strict=True)]))
    assert found["ece"] == pytest.approx(by_loop(logits, labels), rel=1e-12, abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 10), st.sampled_from([1, 2, 10, 15, 40]), st.sampled_from([2, 3, 7]))
def test_calibration_with_any_number_of_bins_and_classes(seed, scale, bins, classes):
    logits, labels = drawn(seed, n=50, classes=classes, scale=scale)
    assert quality.calibration_error(logits, labels, bins) == pytest.approx(by_loop(logits, labels, bins), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_what_changes_nothing(seed, shift):
    """Another order of the examples, and a number added to all logits of one."""
    logits, labels = drawn(seed, n=40, dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(labels))
    shifted = logits[order] + np.linspace(-1, 1, len(labels))[:, None] * shift
    expected, found = quality.rate(logits, labels), quality.rate(shifted, labels[order])
    assert found == {name: pytest.approx(value, rel=1e-9, abs=1e-12) for name, value in expected.items()}


def test_a_network_that_knows_nothing():
    """The first class is its answer, of which it says that the chance is 1 in 8."""
    labels = np.arange(80) % 8
    found = quality.rate(np.zeros((80, 8), np.float32), labels)
    assert (found["accuracy"], found["top5"]) == (1 / 8, 5 / 8)
    assert found["ece"] == pytest.approx(0, abs=1e-15)
    assert found["nll"] == pytest.approx(math.log(8))


def test_of_equal_logits_the_first_counts():
    logits = np.array([[1.0, 1, 1, 1, 1, 1, 0]])
    hits = [quality.top_k_accuracy(logits, np.array([label])) for label in range(7)]
    assert hits == [1, 1, 1, 1, 1, 0, 0]
    assert quality.classes(logits) == [0]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """1/2, and a little more: in one bin the two would cancel out."""
    logits, labels = np.array([[0, 0], [4e-9, 0]]), np.array([0, 1])
    assert quality.calibration_error(logits, labels, bins=2) == pytest.approx(1 / 4 + 1 / 4, abs=1e-8)
    assert by_loop(logits, labels, bins=2) == pytest.approx(1 / 2, abs=1e-8)
    assert quality.calibration_error(logits, labels, bins=1) == pytest.approx(0, abs=1e-8)


def test_certain_and_right_or_wrong():
    """Logits so far apart that all probabilities but one are 0 in any precision."""
    logits = np.eye(6, dtype=np.float32) * 1e4
    labels = np.arange(6)
    assert quality.rate(logits, labels) == {"accuracy": 1, "top5": 1, "ece": 0, "nll": 0}
    # The others are equal, and of them the first four are among five
    found = quality.rate(logits, (labels + 1) % 6)
    assert found == {"accuracy": 0, "top5": 5 / 6, "ece": 1, "nll": 1e4}


@pytest.mark.parametrize("classes", [2, 5])
def test_of_five_classes_every_label_is_among_five(classes):
    logits, labels = drawn(0, classes=classes)
    assert quality.rate(logits, labels)["top5"] is None
    assert quality.top_k_accuracy(logits, labels, k=classes - 1) > 0


def test_logits_that_are_not_numbers_are_no_success():
    logits, labels = drawn(0, n=4)
    logits[1] = np.nan
    found = quality.rate(logits, labels)
    assert math.isnan(found["nll"])
    assert math.isnan(found["ece"])
    kept = [0, 2, 3]
    assert found["top5"] == pytest.approx(quality.top_k_accuracy(logits[kept], labels[kept]) * 3 / 4)


def test_without_logits():
    assert quality.rate(None, np.zeros(0, np.int32)) == {"accuracy": None, "top5": None, "ece": None, "nll": None}


def test_agreement():
    ours, theirs = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    assert quality.agreement(ours, theirs) == 0.5
    assert quality.agreement(ours, ours) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_the_logits_of_every_image_in_their_order(monkeypatch, count):
    """In batches of 7 of 20 images, the last one filled up; the network says what the pixels are."""
    monkeypatch.setattr("gkd_jax.training.evaluate._BATCH", 7)

    def apply(variables, images, *, train):
        assert not train
        return Outputs(images[:, 0, 0] * variables["scale"]), {}

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 2, 2, 3), np.uint8), rng.integers(0, 3, 20).astype(np.int32)
    mean, std = np.array([0.1, 0.2, 0.3], np.float32), np.array([0.5, 0.4, 0.3], np.float32)
    model = Model(lambda key, x: {}, apply, lambda v: v)
    evaluator = Evaluator(model, images, labels, mean, std, jax.devices()[:count])
    for scale in (1.0, -2.0):
        found = evaluator.logits({"scale": scale})
        assert (type(found), found.dtype) == (np.ndarray, np.float32)
        expected = (images[:, 0, 0] / 255.0 - mean) / std * scale
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert evaluator({"scale": scale}) == quality.rate(found, labels)["accuracy"]
