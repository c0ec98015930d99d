"""Relations between the examples of a batch in NumPy, float64: one pair or triple at a time, as the papers say it."""

import math

import numpy as np


def smooth_l1(d):
    return 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5


def unit(x):
    length = math.sqrt(sum(float(v) ** 2 for v in x))
    return x / length if length > 0 else x


def cosine_matrix(x):
    u = [unit(row) for row in x.reshape(len(x), -1)]
    return np.array([[a @ b for b in u] for a in u])


def similarity_preserving(s, t):
    total = 0.0
    rows = []
    for maps in (s, t):
        a = maps.reshape(len(maps), -1)
        rows.append([unit(np.array([x @ y for y in a])) for x in a])
    for p, q in zip(*rows, strict=True):
        total += ((p - q) ** 2).sum()
    return total / len(s) ** 2


def relational_distance(s, t):
    relative = []
    for x in (s, t):
        d = np.array(
            [[0.0 if i == j else max(np.linalg.norm(x[i] - x[j]), 1e-6) for j in range(len(x))] for i in range(len(x))]
        )
        relative.append(d / d[d > 0].mean())
    return np.mean([smooth_l1(d) for d in (relative[0] - relative[1]).ravel()])


def relational_angle(s, t):
    b = len(s)
    total = 0.0
    for i in range(b):
        for j in range(b):
            for k in range(b):
                total += smooth_l1(unit(s[j] - s[i]) @ unit(s[k] - s[i]) - unit(t[j] - t[i]) @ unit(t[k] - t[i]))
    return total / b**3


def probabilistic_transfer(s, t):
    p, q = ((cosine_matrix(x) + 1) / 2 for x in (t, s))
    total = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            p_ij, q_ij = p[i, j] / p[i].sum(), q[i, j] / q[i].sum()
            total += p_ij * math.log((p_ij + 1e-7) / (q_ij + 1e-7))
    return total / len(s) ** 2


def consecutive_correlation(s, t):
    pairs = zip(s[:-1], s[1:], t[:-1], t[1:], strict=True)
    return np.mean([sum(abs(a - u) * abs(b - v)) for a, b, u, v in pairs])


def kernel_correlation(s, t, gamma=0.4, order=2):
    def kernel(x):
        near = cosine_matrix(x)
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * near**p for p in range(order + 1))

    return ((kernel(s) - kernel(t)) ** 2).sum() / len(s) ** 2
