"""A learner meets tasks: it is given their ways, and episodes that it cannot read or answer are refused."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quickstudy.base import trees
from quickstudy.engine.labels import Allowed, allowed, class_axis, classes_on_axis, takes_classes
from quickstudy.episodes import Episodes, class_numbers, count, stacked, tensor_sizes, unstack, whole
from quickstudy.errors import ConfigError, DataError, ModelWarning, QuickstudyError, first_line
from quickstudy.learner import Episode, Learner, Theta, networks, setting, takes
from quickstudy.nn.model import noting_writes
from quickstudy.nn.statistics import normalisation, with_normalisation
from quickstudy.tasks.source import source_of

# What networks raise for inputs that they cannot read: torch for wrong shapes, Python for wrong arguments.
UNREADABLE = (RuntimeError, IndexError, TypeError, AttributeError, ValueError)


class Alike(NamedTuple):
    """Tasks that can be computed together."""

    places: list[int]  # their positions in the batch
    learner: Learner  # with the `ways` of these tasks
    episodes: Episode  # with a task axis


def fitted(learner: Learner, episode: Episode) -> tuple[Learner, Episode]:
    """The learner with the `ways` of one task, and the task with its classes renumbered 0..ways-1.

    Both stay as they are if the learner has entries for each class (`fixed_ways`) or no ways, and where the answers are
    values or several targets. Raises DataError for a query of a class that has no support example.
    """
    ways = setting(learner, "ways")
    classes = class_numbers(episode)
    if ways is None or learner.fixed_ways or not classes or classes == tuple(range(ways)):
        return learner, episode
    if unseen := sorted(set(episode.query.y.unique().tolist()) - set(classes)):
        raise DataError(f"a task asks for class {unseen[0]}, of which its support set has no example.")
    known = torch.tensor(classes, device=episode.query.y.device)
    renumbered = (batch._replace(y=torch.searchsorted(known, batch.y)) for batch in episode)
    return dataclasses.replace(learner, ways=len(classes)), Episode(*renumbered)  # type: ignore[type-var]


def alike(learner: Learner, episodes: Episodes) -> list[Alike]:
    """The tasks of a batch in groups of equal sizes and classes. Raises DataError as `fitted`."""
    if not isinstance(episodes, list):
        return [Alike(list(range(count(episodes))), learner, episodes)]
    groups: dict[tuple, list[int]] = {}
    for place, one in enumerate(episodes):
        groups.setdefault((tensor_sizes(one), class_numbers(one)), []).append(place)
    made = []
    for places in groups.values():
        pairs = [fitted(learner, episodes[place]) for place in places]
        made.append(Alike(places, pairs[0][0], stacked([episode for _, episode in pairs])))
    return made


def for_test(learner: Learner, tasks: Any, steps: int | None = None, transductive: bool | None = None) -> Learner:
    """The learner with its test settings: the tasks' ways if it has ways, other steps, another normalisation.

    `transductive` False: the form that answers each query by itself. Raises ConfigError where the learner does not have
    such a setting, or has outputs for fewer ways.
    """
    if transductive is False and learner.transductive:
        learner = _inductive_form(learner)
    changes: dict[str, Any] = {}
    ways = None if tasks is None else source_of(tasks).ways
    if ways and setting(learner, "ways") is not None:
        changes |= with_ways(learner, ways)
    if steps is not None:
        if not takes(learner, "steps"):
            raise ConfigError(f"{type(learner).__name__} takes no inner steps, but steps={steps} was asked for.")
        changes["steps"] = steps
    if transductive is not None and transductive != is_transductive(learner):
        changes |= _normalised(learner, "batch" if transductive else "support")
    return dataclasses.replace(learner, **changes) if changes else learner  # type: ignore[type-var]


def with_ways(learner: Learner, ways: int) -> dict[str, Any]:
    """The fields to replace for tasks with this many ways; none if theta has an entry for each training class.

    Raises ConfigError where such a learner has outputs for fewer ways.
    """
    if not learner.fixed_ways:
        return {"ways": ways}
    most = setting(learner, "ways")
    if ways > most:
        raise ConfigError(
            f"this {type(learner).__name__} was trained on {most} ways and has outputs for no more, but the task has "
            f"{ways} classes. Test it with {most} ways or fewer, or train with ways={ways}."
        )
    return {}


def _inductive_form(learner: Learner) -> Learner:
    form, name = learner.inductive(), type(learner).__name__
    if form is None:
        raise ConfigError(
            f"{name} declares that its answers to the queries of a call depend on each other (transductive = True), "
            "and it has no form that answers each by itself. Allow it: leave `transductive` out of `evaluate`, give "
            f"transductive=True to `adapt`. If {name} is your own, its method `inductive` can return such a form."
        )
    return form


def _normalised(learner: Learner, policy: str) -> dict[str, Any]:
    if normalisation_of(learner) not in ("batch", "support"):
        raise ConfigError(
            f"{type(learner).__name__} normalises by {normalisation_of(learner)!r}, which never sees other queries: "
            "there is no transductive and no inductive form of it. Leave `transductive` out."
        )
    return {name: with_normalisation(model, policy) for name, model in networks(learner).items()}


def check_episodes(learner: Learner, theta: Theta, episodes: Episodes) -> Allowed:
    """Refuse episodes that the learner cannot use.

    Returns which labels its classes have. Raises DataError where there are NaNs, wrong shapes, or labels for which the
    model has no output.
    """
    _check_finite(episodes)
    fits, one = fitted(learner, unstack(episodes)[0]) if isinstance(episodes, list) else (learner, unstack(episodes)[0])
    untouched = dataclasses.replace(fits, steps=0) if takes(fits, "steps") else fits  # type: ignore[type-var]
    try:
        with torch.no_grad(), noting_writes() as written:
            # Check labels first, with the unadapted model, because torch's own error does not name the label.
            output = untouched.predict(theta, untouched.adapt(theta, one.support), one.query.x)
            labels = _labels(learner, output, one.query.y, several=isinstance(episodes, list))
            _check_answers(learner, output, one.query.y)
            check_values(episodes, labels)
            fits.predict(theta, fits.adapt(theta, one.support), one.query.x)
    except QuickstudyError:
        raise
    except UNREADABLE as error:
        support, query = one
        raise DataError(
            f"{type(learner).__name__} cannot read this task: support x {trees.shapes(support.x)}, y "
            f"{trees.shapes(support.y)} with values {_span(support.y)}, query x {trees.shapes(query.x)}. "
            f"torch says: {first_line(error)}. Check channels, image size and ways against what the model was "
            "built for."
        ) from error
    _warn_of_writes(written)
    return labels


def _labels(learner: Learner, output: Any, y: Any, several: bool) -> Allowed:
    """The labels of the learner's classes; `several`: tasks may differ in their ways."""
    labels = allowed(output, y, setting(learner, "loss"))
    if setting(learner, "ways") is not None and not labels.positions:  # such a learner reads labels beside its loss
        labels = dataclasses.replace(labels, ignored=None)
    own_ways = several and setting(learner, "ways") is not None and not learner.fixed_ways
    return dataclasses.replace(labels, outputs=None) if own_ways else labels


def _warn_of_writes(written: Collection[str]) -> None:
    if written:
        warnings.warn(
            f"the model writes to its buffers in the forward pass ({', '.join(sorted(written))}). Such writes are "
            "dropped, because no task may affect another: each call starts from what the module holds, so an average "
            "that a layer keeps there never moves. Put the layer into eval() mode where it should use what it holds; "
            'for normalisation choose norm="batch" or norm="support" (quickstudy.nn.norm).',
            ModelWarning,
            stacklevel=4,
        )


def check_values(episodes: Episodes, labels: Allowed | None = None) -> None:
    """Raise DataError for NaN, and for labels that are not allowed, which would silently give a wrong score."""
    _check_finite(episodes)
    axes, labels = 1 if isinstance(episodes, list) else 2, labels or Allowed()
    for one in whole(episodes):
        for name, batch in zip(("support", "query"), one, strict=True):
            if (y := labels.of(batch.y, axes)) is not None and y.numel():
                _check_labels(name, y, labels, axes)


def _check_labels(name: str, y: Tensor, labels: Allowed, axes: int) -> None:
    counts = torch.ones_like(y, dtype=torch.bool) if labels.ignored is None else y != labels.ignored
    if not counts.flatten(axes - 1).any(-1).all():
        raise DataError(
            f"a {name} set has no label but {labels.ignored}, which the loss ignores: nothing is left of it to learn "
            "from or to score. Leave such tasks out."
        )
    low, high = int(y[counts].min()), int(y[counts].max())
    if low >= 0 and (labels.outputs is None or high < labels.outputs):
        return
    n = labels.outputs
    most = " or more" if n is None else f"..{n - 1}, as the model has {n} outputs"
    besides = "" if labels.ignored is None else f" (or {labels.ignored}, which counts nowhere)"
    raise DataError(
        f"labels must be 0{most}{besides}; got {low}..{high}. "
        "Renumber the labels, or build the model with as many outputs as there are classes."
    )


def _check_finite(episodes: Episodes) -> None:
    for one in whole(episodes):
        for name, batch in zip(("support", "query"), one, strict=True):
            if (where := not_finite(batch.x)) is not None:
                raise DataError(
                    f"the {name} inputs{where} hold NaN or infinity. Remove or fill the missing values first."
                )
            if (where := not_finite(batch.y)) is not None:
                raise DataError(f"the {name} answers{where} hold NaN or infinity. Remove those examples first.")


def not_finite(tree: Any) -> str | None:
    """Where the first tensor with NaN or infinity is: '' for a single one, " ['mask']" in a dict; None: all finite."""
    wrong = (f" {name}".rstrip() for name, t in trees.named(tree) if t.is_floating_point() and not _finite(t))
    return next(wrong, None)


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _check_answers(learner: Learner, output: Any, y: Any) -> None:
    if not (isinstance(output, Tensor) and isinstance(y, Tensor)):  # a loss for several targets decides what fits
        return
    if y.is_floating_point() and output.shape != y.shape:
        raise DataError(
            f"the model answers with shape {tuple(output.shape)}, but the tasks' y has shape {tuple(y.shape)}. "
            "For regression give y as [n, d] and a model with d outputs."
        )
    loss = setting(learner, "loss")
    if not y.is_floating_point() and y.dim() > 1 and takes_classes(loss) and class_axis(output, y, loss) is None:
        raise DataError(
            f"labels {list(y.shape)} need outputs {classes_on_axis(y)}: torch's cross entropy has the classes on axis "
            f"1. The model answers with {list(output.shape)}; move its axis of classes with output.movedim(-1, 1)."
        )


def _span(y: Any) -> str:
    spans = (f"{t.min().item():g}..{t.max().item():g}" if t.numel() else "none" for t in trees.tensors(y))
    return ", ".join(spans)


def device_of(theta: Theta) -> torch.device:
    """The device of theta; the CPU if theta is empty."""
    return next(iter(theta.values())).device if theta else torch.device("cpu")


def normalisation_of(learner: Learner) -> str:
    """How the learner's networks normalise: 'batch' if any does, then 'support', 'running', 'layer' or 'none'."""
    found = {normalisation(model) for model in networks(learner).values()}
    return next((kind for kind in ("batch", "support", "running", "layer") if kind in found), "none")


def is_transductive(learner: Learner) -> bool:
    """Whether a query's answer depends on the other queries of a call: by declaration, or by its normalisation."""
    return learner.transductive or normalisation_of(learner) == "batch"


def inductive(learner: Learner) -> Learner:
    """The learner in the form that answers each query by itself; batch norm then takes the support set's statistics.

    Raises ConfigError where the learner has no such form.
    """
    return for_test(learner, None, transductive=False)


def has_both_forms(learner: Learner) -> bool:
    """Whether the learner is transductive and has an inductive form too, so that it can be tested both ways."""
    return is_transductive(learner) and learner.inductive() is not None


SHARED = 1e-3  # relative difference of two answers that rounding does not explain


def shares_queries(learner: Learner, theta: Theta, episodes: Episodes) -> bool:
    """Whether the answer to the first query of the first task changes when its other queries are left out."""
    fits, (support, query) = fitted(learner, unstack(episodes)[0])
    if trees.size(query.x) < 2:
        return False
    with torch.no_grad():
        phi = fits.adapt(theta, support)
        alone, together = (fits.predict(theta, phi, x) for x in (trees.rows(query.x, slice(1)), query.x))
    pairs = zip(trees.tensors(alone), trees.tensors(together), strict=True)
    return any(float((a - b[:1]).abs().max()) > SHARED * float(b.abs().max()) for a, b in pairs)
