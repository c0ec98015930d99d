"""Central differences in float64, against which derivatives are tested."""

import numpy as np


def central_gradient(f, x, step=1e-5):
    """Returns the gradient of the scalar `f` at `x`."""
    x = np.float64(x)
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        apart = np.zeros_like(x)
        apart[place] = step
        found[place] = (f(x + apart) - f(x - apart)) / (2 * step)
    return found
