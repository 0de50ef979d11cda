"""Matrix factorisation of ratings by alternating least squares, with offsets of users and items.

    rating_ui ~ b_u + c_i + p_u . v_i,   squared error + prior (b_u^2 + c_i^2) + lam (|p_u|^2 + |v_i|^2)

Given the users, the vector (c_i, v_i) of each item is a ridge regression on (1, p_u), and the other way round. A new
user is one more such regression, on the items rated so far.

Koren, Bell, Volinsky: Matrix Factorization Techniques for Recommender Systems, IEEE Computer 2009,
https://doi.org/10.1109/MC.2009.263
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDS = 10  # of both steps; ten more move predictions of films by 0.05, where their error is 1.2


class Ratings(NamedTuple):
    """Who rated what how, one entry for each rating."""

    user: np.ndarray  # [n] numbers from 0
    item: np.ndarray  # [n] numbers from 0
    rating: np.ndarray  # [n], less the mean of all


class Factorisation(NamedTuple):
    """Offset and factors, (c_i, v_i) or (b_u, p_u)."""

    of_items: np.ndarray  # [items, 1 + factors]
    of_rows: np.ndarray  # [n, 1 + factors], of each rating's item without that rating
    of_users: np.ndarray  # [users, 1 + factors]


def factorise(given: Ratings, factors: int, prior: float, lam: float) -> Factorisation:
    """The factorisation of ratings into offsets and so many factors.

    What a rating left in its item's vector is taken out in closed form, with the users as they are: in training a
    vector that had seen the answer would promise more than it holds for a new user.
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
    surprise = (target - (z * of_items[item]).sum(1)) / (1 - (z * gain).sum(1))
    return Factorisation(of_items, of_items[item] - gain * surprise[:, None], of_users)


def _seen(vectors: np.ndarray) -> np.ndarray:
    """The other side as what it is regressed on: (1, v) of (c, v)."""
    return np.concatenate([np.ones((len(vectors), 1)), vectors[:, 1:]], axis=1)


def _ridges(
    group: np.ndarray, other: np.ndarray, z: np.ndarray, target: np.ndarray, penalty: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A ridge regression of the targets [n] on z[other] for each group: weights [groups, d], (Z^T Z + D)^-1."""
    from scipy.sparse import csr_matrix  # takes memory that is not needed without ratings

    shape, d = (int(group.max()) + 1, len(z)), z.shape[1]
    outer = (z[:, :, None] * z[:, None, :]).reshape(len(z), d * d)
    gram = (csr_matrix((np.ones(len(group)), (group, other)), shape) @ outer).reshape(-1, d, d)
    inverse = np.linalg.inv(gram + np.diag(penalty))
    return np.einsum("gij,gj->gi", inverse, csr_matrix((target, (group, other)), shape) @ z), inverse
