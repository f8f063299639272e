"""The law of two moons: its coordinates, and the distance of points to it.

The half circles are (cos a, sin a) and (1 - cos a, 1/2 - sin a), a uniform on [0, pi], with Gaussian noise of
deviation e along each axis (scikit-learn's make_moons). Means are 1/2 and 1/4, variances 3/4 + e^2 and
9/16 - 1/pi + e^2. Those of the law, not of a draw, make the coordinates, so that two draws share theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MEAN = np.array([1 / 2, 1 / 4])


def deviation(noise: float) -> NDArray[np.float64]:
    """Standard deviation along each axis, (2,)."""
    return np.sqrt(np.array([3 / 4, 9 / 16 - 1 / np.pi]) + noise**2)


def distances(points: NDArray[np.floating], noise: float) -> NDArray[np.float64]:
    """Euclidean distance to the nearer half circle, (n,), in units of the radius 1.

    Args:
        points: (n, 2) in coordinates of mean 0 and variance 1.
        noise: e of the law, which these coordinates depend on.
    """
    plane = points.astype(np.float64) * deviation(noise) + MEAN
    nearer: NDArray[np.float64] = np.minimum(_upper(plane), _upper([1, 1 / 2] - plane))
    return nearer


def _upper(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to (cos a, sin a), a in [0, pi]: below the axis the nearest point is an end."""
    x, y = points.T
    end = np.hypot(np.abs(x) - 1, y)
    distance: NDArray[np.float64] = np.where(y >= 0, np.abs(np.hypot(x, y) - 1), end)
    return distance
