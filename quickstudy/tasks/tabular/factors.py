"""Matrix factorisation of ratings by alternating least squares, with offsets for users and items.

    rating_ui ~ b_u + c_i + p_u . v_i,   squared error + prior (b_u^2 + c_i^2) + lam (|p_u|^2 + |v_i|^2)

With the users fixed, the vector (c_i, v_i) of each item is a ridge regression on (1, p_u), and vice versa. A new user
is one more such regression, on the items rated so far.

Koren, Bell, Volinsky: Matrix Factorization Techniques for Recommender Systems, IEEE Computer 2009,
https://doi.org/10.1109/MC.2009.263
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDS = 10  # of both steps; ten more change predictions for films by 0.05, where the error is 1.2


class Ratings(NamedTuple):
    """User, item and value of each rating."""

    user: np.ndarray  # [n] numbers from 0
    item: np.ndarray  # [n] numbers from 0
    rating: np.ndarray  # [n], minus the mean of all ratings


class Factorisation(NamedTuple):
    """Offsets and factors: (c_i, v_i) of items, (b_u, p_u) of users."""

    of_items: np.ndarray  # [items, 1 + factors]
    of_rows: np.ndarray  # [n, 1 + factors], the vector of each rating's item, computed without that rating
    of_users: np.ndarray  # [users, 1 + factors]


def factorise(given: Ratings, factors: int, prior: float, lam: float) -> Factorisation:
    """The factorisation of ratings into offsets and this many factors; `prior` and `lam` weight the penalties above.

    For `of_rows`, the influence of a rating on its item's vector is removed in closed form, with the users fixed.
    Otherwise the vector would have seen the answer in training, and would seem more useful than it is for a new user.
    """
    penalty = np.array([prior] + [lam] * factors)
    user, item, rating = given
    drawn = np.random.default_rng(0).normal(0, 0.1, (item.max() + 1, factors))
    of_items = np.concatenate([np.zeros((len(drawn), 1)), drawn], axis=1)
    for _ in range(ROUNDS):
        of_users, _ = _ridges(user, item, _seen(of_items), rating - of_items[item, 0], penalty)
        of_items, covariance = _ridges(item, user, _seen(of_users), rating - of_users[user, 0], penalty)
    z, target = _seen(of_users)[user], rating - of_users[user, 0]
    gain = sum(covariance[item, :, j] * z[:, j, None] for j in range(len(penalty)))  # (Z^T Z + D)^-1 z
    residual = (target - (z * of_items[item]).sum(1)) / (1 - (z * gain).sum(1))
    return Factorisation(of_items, of_items[item] - gain * residual[:, None], of_users)


def _seen(vectors: np.ndarray) -> np.ndarray:
    """The regressors (1, v) from the vectors (c, v) of the other side."""
    return np.concatenate([np.ones((len(vectors), 1)), vectors[:, 1:]], axis=1)


def _ridges(
    group: np.ndarray, other: np.ndarray, z: np.ndarray, target: np.ndarray, penalty: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of targets [n] on z[other] per group: weights [groups, d] and (Z^T Z + D)^-1 [groups, d, d]."""
    from scipy.sparse import csr_matrix  # not at the top: it takes memory that only ratings need

    shape, d = (int(group.max()) + 1, len(z)), z.shape[1]
    outer = (z[:, :, None] * z[:, None, :]).reshape(len(z), d * d)
    gram = (csr_matrix((np.ones(len(group)), (group, other)), shape) @ outer).reshape(-1, d, d)
    inverse = np.linalg.inv(gram + np.diag(penalty))
    return np.einsum("gij,gj->gi", inverse, csr_matrix((target, (group, other)), shape) @ z), inverse
