import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_nets
import pytest
from jax.sharding import AxisType, NamedSharding

from gkd_jax import native
from gkd_jax.models.convolution import CONV_FORMS, convolve

needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
NATIVE = pytest.param("native", marks=needs_native)

# Kernel side, channels in, channels out, groups: pointwise, depthwise, dense.
KERNELS = {
    "pointwise": (1, 3, 5, 1),
    "depthwise": (3, 4, 4, 4),
    "dense": (3, 3, 2, 1),
    "folded": (3, 9, 8, 1),
    "large": (5, 3, 2, 1),
    "grouped": (1, 4, 6, 2),
}

# Height, width, channels in, channels out, stride of what the form "cpu" derives by its own rules.
DENSE = [
    (4, 6, 16, 16, 1),
    (3, 2, 8, 16, 1),
    (5, 4, 16, 8, 1),
    (4, 5, 16, 16, 1),
    (5, 3, 9, 7, 1),
    (4, 4, 32, 32, 1),
    (1, 1, 9, 7, 1),
    (1, 2, 16, 16, 1),
    (6, 4, 16, 32, 2),
    (4, 2, 9, 7, 2),
    (2, 2, 16, 16, 2),
]


def of_size(height, width, kernel_shape, groups=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, kernel_shape[2] * groups)), rng.normal(size=kernel_shape)


def operands(kind, side=5):
    size, channels_in, channels_out, groups = KERNELS[kind]
    return *of_size(side, side + 1, (size, size, channels_in // groups, channels_out), groups), groups


def plain(x, kernel, stride, groups=1):
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def jaxpr(x, kernel, form="cpu", **options):
    return str(jax.make_jaxpr(functools.partial(convolve, form=form, **options))(x, kernel))


@pytest.mark.parametrize("form", [NATIVE if form == "native" else form for form in CONV_FORMS])
@pytest.mark.parametrize(("kind", "stride"), [*itertools.product(KERNELS, (1, 2))])
def test_convolution_equals_sliding_the_kernel(x64, form, kind, stride):
    for side in (5, 6):  # strides meet an odd and an even side differently
        x, kernel, groups = operands(kind, side)
        padding = kernel.shape[0] // 2
        y = convolve(jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding=padding, groups=groups, form=form)
        np.testing.assert_allclose(y, numpy_nets.conv(x, kernel, stride, groups), atol=1e-13)


def check_derivatives(x, kernel, stride, groups, form, orders=2):
    """Compares value and reverse gradients with those of `lax.conv_general_dilated`, to 1e-12 of the largest."""

    def rewritten(x, kernel):
        return convolve(x, kernel, stride=stride, padding=kernel.shape[0] // 2, groups=groups, form=form)

    def derivatives(conv):
        found, gradient = [conv], jax.grad(lambda *a: jnp.sum(jnp.sin(conv(*a) / 4)), (0, 1))
        for _ in range(orders):
            found.append(gradient)
            # As in gradient matching: a function of the gradients, differentiated in reverse again.
            gradient = jax.grad(lambda *a, f=gradient: sum(jnp.sum(g**3) for g in f(*a)), (0, 1))
        return lambda x, kernel: [f(x, kernel) for f in found]

    @jax.jit
    def both(x, kernel):
        return derivatives(rewritten)(x, kernel), derivatives(lambda *a: plain(*a, stride, groups))(x, kernel)

    for ours, theirs in zip(*(jax.tree.leaves(side) for side in both(x, kernel)), strict=True):
        largest = np.abs(theirs).max()
        assert largest > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("form", ["matmul", "cpu"])  # which differ in the depthwise kernel's gradient
@pytest.mark.parametrize(("kind", "stride"), [*itertools.product(("pointwise", "depthwise", "grouped"), (1, 2))])
def test_derivatives_of_products_and_taps(x64, kind, stride, form):
    x, kernel, groups = operands(kind)
    check_derivatives(x, kernel, stride, groups, form)


def test_a_strided_product_is_apart_from_its_slice():
    """XLA for GPUs dies of a product with the strided slice of a map that a convolution reads too."""
    x, kernel, _ = operands("pointwise")
    assert "optimization_barrier" in jaxpr(x, kernel, form="matmul", stride=2)
    assert "optimization_barrier" not in jaxpr(x, kernel, form="matmul")


@pytest.mark.parametrize(("height", "width", "channels", "out", "stride"), DENSE)
def test_derivatives_of_dense_convolutions(x64, height, width, channels, out, stride):
    x, kernel = of_size(height, width, (3, 3, channels, out))
    assert "convolve_3x3" in jaxpr(x, kernel, stride=stride, padding=1)
    check_derivatives(x, kernel, stride, 1, "cpu")


# Of the kernels of our own: tiles of every width, images of more rows than stay in the first-level cache, channels that
# fill vectors, pairs of them and several parts of a kernel, or do not.
TILES = [
    (7, 5, 3, 16, 1),
    (1, 1, 9, 7, 1),
    (40, 34, 16, 8, 1),
    (3, 4, 72, 24, 1),
    (2, 3, 24, 40, 1),
    (2, 2, 16, 16, 2),
    (36, 32, 8, 16, 2),
    (6, 2, 40, 72, 2),
]


@needs_native
@pytest.mark.parametrize(("height", "width", "channels", "out", "stride"), TILES)
def test_derivatives_of_kernels_of_our_own(x64, height, width, channels, out, stride):
    x, kernel = of_size(height, width, (3, 3, channels, out))
    assert "conv_general_dilated" not in jaxpr(x, kernel, "native", stride=stride, padding=1)
    check_derivatives(x, kernel, stride, 1, "native")


FORMS = ["cpu", NATIVE]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stride", [1, 2])
def test_third_derivatives(x64, stride, form):
    check_derivatives(*of_size(2, 4, (3, 3, 8, 9)), stride, 1, form, orders=3)


def small_batches(x, kernel):
    """Returns value and gradients of batches of 1, 2, 7 and 67 images, which threads share in pieces."""

    def loss(x, k):
        return jnp.sum(jnp.sin(convolve(x, k, padding=1, form="native")))

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return [gradient(x[:n], kernel) for n in (1, 2, 7, 67)]


@needs_native
def test_every_image_of_a_batch_counts(x64, key):
    x, kernel = jax.random.normal(key, (67, 5, 6, 8), jnp.float64), jax.random.normal(key, (3, 3, 8, 16), jnp.float64)
    for n, ours in zip((1, 2, 7, 67), small_batches(x, kernel), strict=True):
        theirs = jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(plain(x, k, 1))), (0, 1))(x[:n], kernel)
        equal(ours, theirs, 1e-12)


@needs_native
def test_the_same_bits_from_run_to_run(key):
    x, kernel = jax.random.normal(key, (67, 9, 8, 8)), jax.random.normal(key, (3, 3, 8, 16))
    first = small_batches(x, kernel)
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, small_batches(x, kernel), first)


@needs_native
@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_of_our_own_in_single_precision(key, stride):
    keys = jax.random.split(key, 3)
    for channels, out in ((16, 16), (64, 32), (3, 24)):
        x, kernel = jax.random.normal(keys[0], (4, 12, 8, channels)), jax.random.normal(keys[1], (3, 3, channels, out))
        dy = jax.random.normal(keys[2], (4, 12 // stride, 8 // stride, out))

        def pulled(form, x=x, kernel=kernel, dy=dy):
            y, pull = jax.vjp(lambda *a: convolve(*a, stride=stride, padding=1, form=form), x, kernel)
            return y, *pull(dy)

        equal(jax.jit(pulled, static_argnums=0)("native"), jax.jit(pulled, static_argnums=0)("plain"), 1e-5)


@needs_native
def test_an_empty_batch_has_empty_images_and_a_gradient_of_zeros():
    x, kernel = jnp.zeros((0, 4, 4, 8)), jnp.ones((3, 3, 8, 16))
    y, pull = jax.vjp(lambda x, k: convolve(x, k, padding=1, form="native"), x, kernel)
    assert y.shape == (0, 4, 4, 16)
    dx, dk = pull(y)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dk, jnp.zeros_like(kernel))


@needs_native
def test_kernels_of_our_own_read_nothing_that_is_not_there():
    x, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 7, 8))
    with pytest.raises(TypeError):
        convolve(x, kernel, padding=1, form="native")
    with pytest.raises(TypeError, match=r"images float32\(1, 4, 4, 8\) and kernel bfloat16\(3, 3, 8, 8\) at stride 1"):
        convolve(x, jnp.ones((3, 3, 8, 8), jnp.bfloat16), padding=1, form="native")
    call = jax.ffi.ffi_call("gkd_convolution_float32", jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.float32))
    for stride, wrong in ((1, kernel), (2, jnp.ones((3, 3, 8, 8))), (1, jnp.ones((3, 2, 8, 8)))):
        with pytest.raises(jax.errors.JaxRuntimeError, match="images, kernel and stride do not fit one another"):
            jax.block_until_ready(call(x, wrong, stride=np.int64(stride)))


@needs_native
def test_other_types_have_the_form_of_a_cpu(key):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in of_size(4, 4, (3, 3, 8, 8)))
    assert "ffi_call" not in jaxpr(x, kernel, "native", padding=1)
    assert "ffi_call" in jaxpr(x.astype(jnp.float32), kernel.astype(jnp.float32), "native", padding=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("side", "kernel_shape", "options"),
    [
        ((4, 5), (3, 3, 8, 8), {"stride": 2, "padding": 1}),
        ((5, 4), (3, 3, 8, 8), {"stride": 2, "padding": 1}),
        ((6, 6), (3, 3, 8, 8), {"stride": 3, "padding": 1}),
        ((4, 4), (3, 3, 8, 8), {"stride": 1, "padding": 0}),
        ((4, 4), (3, 3, 8, 8), {"stride": 1, "padding": 2}),
        ((4, 4), (3, 3, 8, 4), {"stride": 1, "padding": 1, "groups": 2}),
        ((4, 4), (5, 5, 8, 8), {"stride": 1, "padding": 1}),
        ((4, 4), (3, 1, 8, 8), {"stride": 1, "padding": 1}),
    ],
)
def test_other_convolutions_are_plain(side, kernel_shape, options, form):
    x, kernel = of_size(*side, kernel_shape, options.get("groups", 1))
    text = jaxpr(x, kernel, form, **options)
    assert "convolve_3x3" not in text
    assert "conv_general_dilated[" in text


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (7, 2)])
def test_convolutions_of_few_channels_are_plain(channels, stride):
    assert "convolve_3x3" not in jaxpr(*of_size(4, 4, (3, 3, channels, 8)), stride=stride, padding=1)


@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "grouped"])
def test_what_is_slow_as_a_convolution_is_none(kind):
    x, kernel, groups = operands(kind)
    assert "conv_general_dilated" not in jaxpr(x, kernel, padding=kernel.shape[0] // 2, groups=groups)


def test_pairs_of_neighbours_are_for_few_channels():
    def paired(width, channels, out):
        return "window_strides=(1, 2)" in jaxpr(*of_size(4, width, (3, 3, channels, out)), padding=1)

    assert paired(4, 16, 16)
    assert paired(4, 8, 16)
    assert not paired(5, 16, 16)  # the last one has no neighbour
    assert not paired(4, 3, 16)
    assert not paired(4, 16, 32)


@pytest.mark.parametrize("stride", [1, 2])
def test_weight_gradients_sum_in_float32(stride):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in of_size(16, 16, (3, 3, 8, 3)))

    def gradient(x, kernel):
        return jax.grad(lambda k: jnp.sum(convolve(x, k, stride=stride, padding=1, form="cpu")), 0)(kernel)

    ours = gradient(x, kernel)
    assert ours.dtype == jnp.bfloat16
    # The gradient of a sum is exact in both: ones times what bfloat16 holds. Only the result is rounded.
    exact = gradient(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8)
    text = str(jax.make_jaxpr(gradient)(x, kernel))
    assert "preferred_element_type=float32" in text  # some backends would sum in it unasked


def loss(form, x, kernels):
    """A network of the stem, a paired and a strided convolution."""
    for kernel, stride in zip(kernels, (1, 1, 2), strict=True):
        x = jnp.tanh(convolve(x, kernel, stride=stride, padding=1, form=form))
    return jnp.mean(jnp.square(x))


def network(key, images=4):
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (images, 4, 4, 3))
    shapes = ((3, 8), (8, 8), (8, 4))
    return x, [jax.random.normal(k, (3, 3, *s)) / 4 for k, s in zip(keys[1:], shapes, strict=True)]


def equal(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernels_too", [False, True])
def test_mapped_over(x64, key, kernels_too, form):
    x, kernels = network(key, 6)
    x = x.reshape(2, 3, *x.shape[1:])
    stacked = [jnp.stack([k, 2 * k[::-1]]) for k in kernels] if kernels_too else kernels

    @jax.jit
    def both(x, kernels):
        ours = jax.vmap(jax.value_and_grad(functools.partial(loss, form), (0, 1)), (0, 0 if kernels_too else None))
        theirs = [
            jax.value_and_grad(functools.partial(loss, "plain"), (0, 1))(
                x[i], [k[i] for k in kernels] if kernels_too else kernels
            )
            for i in range(2)
        ]
        return ours(x, kernels), jax.tree.map(lambda *a: jnp.stack(a), *theirs)

    equal(*both(x, stacked), 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_in_a_loop_of_steps(x64, key, form):
    x, kernels = network(key)

    def descend(form, kernels):
        value, gradient = jax.value_and_grad(functools.partial(loss, form, x))(kernels)
        return jax.tree.map(lambda k, g: k - g, kernels, gradient), value

    @jax.jit
    def in_a_loop(kernels):
        return jax.lax.scan(lambda kernels, _: descend(form, kernels), kernels, length=3)

    step, losses, one_by_one = jax.jit(functools.partial(descend, "plain")), [], kernels
    for _ in range(3):
        one_by_one, value = step(one_by_one)
        losses.append(value)
    equal(in_a_loop(kernels), (one_by_one, jnp.stack(losses)), 1e-12)


def test_a_batch_on_two_devices(key):
    x, kernels = network(key)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, sharded = NamedSharding(mesh, jax.P()), NamedSharding(mesh, jax.P("data"))
    gradient = jax.value_and_grad(functools.partial(loss, "cpu"), 1)
    step = jax.jit(gradient, in_shardings=(sharded, everywhere), out_shardings=everywhere)
    ours = jax.block_until_ready(step(jax.device_put(x, sharded), jax.device_put(kernels, everywhere)))
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(ours))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, jax.eval_shape(gradient, x, kernels))
    equal(ours, jax.jit(jax.value_and_grad(functools.partial(loss, "plain"), 1))(x, kernels), 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_is_refused(key, form):
    x, kernels = network(key)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: loss(form, x, kernels), (x,), (x,))
