"""The learners that controls of texts use: TF-IDF with nearest class means, and with logistic regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from quickstudy.learner import Batch, Episode, Learner, Theta, Ways
from quickstudy.learners.parts.distance import class_means, cosines
from quickstudy.learners.reference import Line, LinearProbe

IDF = "idf"  # name in theta of the inverse document frequencies of the training texts


class Centroids(NamedTuple):
    idf: Tensor  # [buckets]
    means: Tensor  # [ways, buckets]


class Fitted(NamedTuple):
    idf: Tensor  # [buckets]
    basis: Tensor  # [buckets, r], orthonormal columns that span the TF-IDF of the support texts
    line: Line  # from coordinates in this basis to logits


def counts(x: Tensor, buckets: int) -> Tensor:
    """How often each subword occurs: x [n, words, subwords], where 0 stands for none -> [n, buckets]."""
    subwords = x.flatten(1).long()
    known = (subwords > 0).to(torch.get_default_dtype())
    return torch.zeros_like(known[:, :1]).expand(-1, buckets).scatter_add(1, subwords, known)


def inverse_frequencies(x: Tensor, buckets: int) -> Tensor:
    """idf_p = 1 + log((n + 1) / (n_p + 1)) for n texts, of which n_p contain the subword p: [buckets]."""
    return 1 + ((len(x) + 1) / ((counts(x, buckets) > 0).sum(0) + 1)).log()


def tf_idf(x: Tensor, idf: Tensor) -> Tensor:
    """count_p idf_p, scaled to length one: [n, buckets]."""
    return F.normalize(counts(x, len(idf)) * idf, dim=1)


@dataclass(frozen=True, eq=False)
class TfIdfCentroid(Learner):
    """The class mean of TF-IDF at the smallest angle.

        t(x) = count_p(x) idf_p, scaled to length one,   c_k = mean of t(x) over class k,   logits_k(x) = cos(t(x), c_k)

    The subwords p are those that `qs.tasks.from_text` hashes a text to. idf is that of the training texts where theta
    has it, under "idf"; else that of the support set. Queries have no part in it.

    Salton, Buckley: Term-weighting Approaches in Automatic Text Retrieval, Information Processing & Management 24(5),
    1988, https://doi.org/10.1016/0306-4573(88)90021-0 (idf as in scikit-learn: smooth, and 1 for what is everywhere)
    """

    ways: Ways
    buckets: int  # numbers that subwords are hashed to

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Centroids:
        idf = _idf(theta, support.x, self.buckets)
        return Centroids(idf, class_means(tf_idf(support.x, idf), support.y, self.ways))

    def predict(self, theta: Theta, phi: Centroids, x: Tensor) -> Tensor:
        return cosines(tf_idf(x, phi.idf), phi.means)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return _loss(self, theta, episode)


@dataclass(frozen=True, eq=False)
class TfIdfRegression(Learner):
    """Softmax regression on TF-IDF, see `TfIdfCentroid` and `LinearProbe`.

    Its weights are sums of the support texts' rows T, so it is fitted in the space that these span: with T^T = B R,
    coordinates t(x) B, which for the support texts are R^T.
    """

    ways: Ways
    buckets: int  # numbers that subwords are hashed to

    def init(self) -> Theta:
        return {}

    def adapt(self, theta: Theta, support: Batch) -> Fitted:
        idf = _idf(theta, support.x, self.buckets)
        basis, r = torch.linalg.qr(tf_idf(support.x, idf).T)
        return Fitted(idf, basis, LinearProbe(self.ways).adapt({}, support._replace(x=r.T)))

    def predict(self, theta: Theta, phi: Fitted, x: Tensor) -> Tensor:
        return LinearProbe(self.ways).predict({}, phi.line, tf_idf(x, phi.idf) @ phi.basis)

    def meta_loss(self, theta: Theta, episode: Episode) -> Tensor:
        return _loss(self, theta, episode)


def _idf(theta: Theta, x: Tensor, buckets: int) -> Tensor:
    return theta[IDF] if IDF in theta else inverse_frequencies(x, buckets)


def _loss(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    output = learner.predict(theta, learner.adapt(theta, episode.support), episode.query.x)
    return F.cross_entropy(output, episode.query.y)
