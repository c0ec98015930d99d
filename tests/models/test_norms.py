"""`Model.norms`: that each pair is what the preactivation was scaled and shifted by."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_nets
import pytest
from small_nets import SMALL

from gkd_jax import models
from gkd_jax.models.shufflenet import ShuffleNetV1

IMAGES = jnp.asarray(np.random.default_rng(3).normal(size=(4, 8, 8, 2)), jnp.float32)


def replaced(variables, leaf, new):
    """Returns `variables` with `new` in the one place where `leaf` itself stands."""
    assert sum(one is leaf for one in jax.tree.leaves(variables)) == 1
    return jax.tree.map(lambda one: new if one is leaf else one, variables)


def empty(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize("name", SMALL)
def test_norms_scale_and_shift_what_they_say(name):
    model = models.linen(SMALL[name][0])
    variables = numpy_nets.random_variables(model, IMAGES.shape[1:])
    preact = jax.jit(lambda variables: model.apply(variables, IMAGES, train=True)[0].preact)
    before, norms = preact(variables), model.norms(variables)
    assert len(norms) == len(before)
    for i, norm in enumerate(norms):
        if norm is None:
            continue
        scale, bias = norm
        shift = jnp.arange(1.0, len(bias) + 1)
        shifted = preact(replaced(variables, bias, bias + shift))
        np.testing.assert_allclose(
            shifted[i] - before[i], np.broadcast_to(shift, before[i].shape), rtol=1e-4, atol=1e-4
        )
        # Once more of the scale adds scale · x̂, where x̂ has mean 0 and variance 1 over the batch in training.
        normalised = preact(replaced(variables, scale, 2 * scale))[i] - before[i]
        np.testing.assert_allclose(normalised.mean((0, 1, 2)), np.zeros(len(scale)), atol=1e-4)
        np.testing.assert_allclose(normalised.std((0, 1, 2)), scale, rtol=0.01)
        for j in range(i):  # What stands before it knows nothing of it
            np.testing.assert_array_equal(shifted[j], before[j])


def test_preactivations_that_are_no_output_of_a_norm():
    def norms(module):
        model = models.linen(module)
        return model.norms(empty(model))

    assert [norm is None for norm in norms(SMALL["split"][0])] == [False, True, True]
    # A stage of one unit ends in a concatenation.
    assert [norm is None for norm in norms(ShuffleNetV1(3, 4, (8, 16), (1, 2), 1))] == [False, True, False]
    assert None not in norms(SMALL["grouped"][0])


def test_norms_are_not_asked_of_folded_networks():
    model = models.linen(SMALL["basic"][0])
    variables = numpy_nets.random_variables(model, IMAGES.shape[1:])
    before = jax.tree.leaves(model.norms(variables))
    folded, _ = model.fold(variables)
    assert folded.norms is None
    assert all(a is b for a, b in zip(jax.tree.leaves(model.norms(variables)), before, strict=True))


def test_those_of_wide_networks_are_heos():
    """Heo et al. (2019) take the BatchNorm before a ReLU: the next stage's first, and the network's last."""
    model = models.create("wrn_16_2", num_classes=10)
    variables = empty(model)
    params = variables["params"]
    wanted = (*(params[f"stage{stage}_block1"]["norm1"] for stage in (1, 2, 3)), params["norm"])
    for (scale, bias), norm in zip(model.norms(variables), wanted, strict=True):
        assert scale is norm["scale"]
        assert bias is norm["bias"]
