"""Trained learners as scikit-learn estimators: `fit` adapts to a task, in milliseconds.

    FewShotClassifier(trained).fit(x, y).predict(new_x)

`trained` is a parameter like any other, so the estimators work in Pipeline, cross_val_score and GridSearchCV. These
search or validate the adaptation, never the meta-training. Without `trained`, the estimators compare class means, or
fit a line, on the plain inputs: the baseline that a trained learner must beat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from quickstudy.errors import DataError
from quickstudy.learners.metric.nearest_centroid import NearestCentroid
from quickstudy.learners.reference import LinearProbe
from quickstudy.tasks.tabular.columns import as_numbers
from quickstudy.tasks.tabular.frames import as_frame
from quickstudy.tasks.tabular.tables import as_trained
from quickstudy.trained.readers.arrays import ARRAYS
from quickstudy.trained.readers.known import reader_of
from quickstudy.trained.readers.reader import Preprocess
from quickstudy.trained.trained import Trained


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A trained classifier that learns the classes it is fitted on.

    trained        from `qs.train` or `qs.load`; None: the nearest class mean of the inputs
    transductive   whether answers may depend on the other inputs of a call, as in `Trained.adapt`

    x is an array [n, d] or images [n, ...]; for a learner of texts a list of texts, for one of tables a DataFrame as it
    is in the file: the learner scales its columns itself, so an array or a DataFrame from a scaler is refused.

    Attributes: `classes_`, `predictor_` (a `Predictor`), `n_features_in_` for inputs that are rows of numbers.
    """

    def __init__(self, trained: Trained | None = None, transductive: bool = False) -> None:
        self.trained = trained
        self.transductive = transductive

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt to a task of two or more classes: X as above, y [n].

        Raises ValueError for a single class and where scikit-learn's checks fail, and the errors of `Trained.adapt`.
        """
        X, y = _given(self, X, y)
        check_classification_targets(y)
        trained = self.trained or Trained(NearestCentroid(), {})
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_[0]!r}.")
        names = y.tolist() if "classes" in trained.preprocess else numbers
        self.predictor_ = trained.adapt(X, names, transductive=self.transductive)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities [n, classes], columns in the order of `classes_`."""
        check_is_fitted(self, "predictor_")
        logits = self.predictor_.logits(_asked(self, X)).cpu().double()
        known: list[Any] = list(self.predictor_.classes or ())
        if "classes" in self.predictor_.preprocess:  # one column per class of training: keep those of this task
            # Logits, because the probabilities of all of a task's classes may underflow to zero.
            logits = logits[:, [known.index(str(name)) for name in self.classes_]]
        return logits.softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most likely class of each input [n]."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]


class FewShotRegressor(RegressorMixin, BaseEstimator):
    """A trained regression learner that learns the task it is fitted on.

    trained   from `qs.train` or `qs.load`; None: the minimum-norm least-squares line through the examples
    """

    def __init__(self, trained: Trained | None = None) -> None:
        self.trained = trained

    def fit(self, X: Any, y: Any) -> FewShotRegressor:
        """Adapt to a regression task: X as for `FewShotClassifier`, y [n] or [n, d].

        Raises ValueError where scikit-learn's checks fail, and the errors of `Trained.adapt`.
        """
        X, y = _given(self, X, y, multi_output=True, y_numeric=True)
        self.flat_ = np.ndim(y) == 1
        trained = self.trained or Trained(LinearProbe(), {})
        self.predictor_ = trained.adapt(X, np.asarray(y, dtype=np.float64).reshape(len(y), -1))
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """A value for each input, [n] or [n, d] like the y of `fit`."""
        check_is_fitted(self, "predictor_")
        found = torch.as_tensor(self.predictor_.predict(_asked(self, X))).cpu().double().numpy()
        return found[:, 0] if self.flat_ and found.shape[1] == 1 else found


def _reads_numbers(estimator: Any) -> bool:
    """Whether inputs are rows of numbers, which scikit-learn can check. It cannot check images, texts and tables."""
    return estimator.trained is None or reader_of(estimator.trained.preprocess) is ARRAYS


def _given(estimator: Any, X: Any, y: Any, **checks: Any) -> tuple[Any, np.ndarray]:
    if _reads_numbers(estimator):
        X, y = validate_data(estimator, X, y, allow_nd=True, **checks)
        return _double(X), np.array(y)
    _check_unscaled(estimator.trained.preprocess, X)
    return X, np.array(y)


def _check_unscaled(preprocess: Preprocess, X: Any) -> None:
    """Raise DataError where a step before this one has scaled the rows of a table, which the learner scales itself."""
    if "columns" not in preprocess:
        return
    advice = "This learner scales the columns itself, as in training: give it the DataFrame, and leave scalers out."
    if isinstance(X, (np.ndarray, Tensor)):
        raise DataError(
            f"rows of a table come with the names of their columns; got an array of {list(X.shape)}. {advice}"
        )
    frame = as_trained(preprocess, as_frame(X))
    numbers = [c for c in preprocess["columns"] if c["kind"] == "number" and c["name"] in frame.columns]
    scales = np.array([_scale(frame[column["name"]]) for column in numbers])
    trained = np.array([(column["mean"], column["std"]) for column in numbers])
    if len(frame) > 2 and len(scales) and np.allclose(scales, (0, 1)) and not np.allclose(trained, (0, 1), atol=0.01):
        raise DataError(f"every column of numbers has the mean 0 and the standard deviation 1 already. {advice}")


def _scale(values: Any) -> tuple[float, float]:
    known = as_numbers(values, str(values.name))
    return float(np.nanmean(known)), float(np.nanstd(known))


def _asked(estimator: Any, X: Any) -> Any:
    if _reads_numbers(estimator):
        return _double(validate_data(estimator, X, reset=False, allow_nd=True))
    return X


def _double(X: Any) -> Any:
    return np.array(X) if X.dtype == np.uint8 else X.astype(np.float64)
