"""How good is a learner? Scores on unseen tasks with interval, protocol and controls, and paired comparison."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from quickstudy import engine as engines
from quickstudy import ranks, seeds, trials
from quickstudy.ensemble import best_thetas, mean_answer
from quickstudy.episodes import (
    Episodes,
    concat,
    count,
    first_tasks,
    fitted,
    is_classification,
    moved,
    unstack,
    whole,
)
from quickstudy.errors import ConfigError, DataError, NonFiniteError
from quickstudy.learner import Episode, Learner, Theta
from quickstudy.model import with_normalisation
from quickstudy.protocol import Protocol, describe, is_transductive, networks, normalisation_of, require_same

BLOCK = 25  # episodes evaluated at once: enough to keep the engine busy, few enough for memory
TRIAL = 8  # episodes on which the engines are timed


@dataclass(frozen=True, eq=False, repr=False)
class Score:
    """One value per test episode (accuracy in [0, 1], or mean squared error), and the protocol of the measurement.

    `controls` holds the scores of control learners on the same episodes, by name; a control has some information taken
    away. If tasks are fixed things such as customers or hospitals, `tasks` names the task of each episode. Then each
    task counts once, however many episodes it has, and the interval is over tasks, because the episodes of one task
    say nothing about other tasks.
    """

    values: Tensor  # float64 [episodes]
    protocol: Protocol
    controls: Mapping[str, Score] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()  # [episodes]; empty if every episode is its own task

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return float(by_task(self.values, self.tasks).mean())

    @property
    def interval(self) -> float:
        """The half width of the 95 % confidence interval of the mean over tasks."""
        return half_width(by_task(self.values, self.tasks))

    def __str__(self) -> str:
        over = over_what(len(self.values), self.tasks)
        under = f"(95 % CI over {over}; {self.protocol.describe()})"
        return f"{in_words(self.mean, self.interval, self.protocol.metric)} {under}"

    __repr__ = __str__  # the default would print hundreds of values

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for scores.json."""
        return {
            "text": str(self),
            "mean": self.mean,
            "interval": None if math.isinf(self.interval) else self.interval,
            "protocol": self.protocol.to_dict(),
            "values": [float(f"{v:.9g}") for v in self.values.tolist()],
            **({"tasks": list(self.tasks)} if self.tasks else {}),
            "controls": {name: score.to_dict() for name, score in self.controls.items()},
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Score:
        """The score that `to_dict` wrote. Raises KeyError, ValueError or TypeError for anything else."""
        controls = {name: cls.from_dict(value) for name, value in plain["controls"].items()}
        values, tasks = torch.tensor(plain["values"], dtype=torch.float64), tuple(plain.get("tasks", ()))
        return cls(values, Protocol(**plain["protocol"]), controls, tasks)

    def save(self, path: str) -> None:
        """Write the score to a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)


@dataclass(frozen=True)
class Difference:
    """The paired difference of two scores on the same episodes: a minus b."""

    mean: float
    interval: float  # half width of the 95 % confidence interval
    metric: str

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.interval

    def __str__(self) -> str:
        sign = "+" if self.mean >= 0 else "-"
        verdict = "decided" if self.decided else "not decided: the interval holds zero"
        return f"{sign}{in_words(abs(self.mean), self.interval, self.metric, points=True)} (paired, 95 % CI; {verdict})"


def in_words(mean: float, interval: float, metric: str, points: bool = False) -> str:
    """Format a mean: '97.4 % ± 0.3' for accuracies, '0.152 ± 0.011 mean squared error' for errors."""
    if metric == "accuracy":
        return f"{100 * mean:.1f} {'points' if points else '%'} ± {100 * interval:.1f}"
    return f"{mean:.3g} ± {interval:.2g} {metric}"


def by_task(values: Tensor, tasks: Sequence[str]) -> Tensor:
    """The mean of each task's values, sorted by task name; with fewer than two tasks the values themselves.

    values   [episodes]; `tasks` names the task of each
    """
    if len(set(tasks)) < 2:
        return values
    places = {name: i for i, name in enumerate(sorted(set(tasks)))}
    of = torch.tensor([places[name] for name in tasks])
    sums = torch.zeros(len(places), dtype=values.dtype).index_add(0, of, values)
    return sums / of.bincount()


def over_what(episodes: int, tasks: Sequence[str]) -> str:
    """What a mean is taken over, as text: '600 episodes', or '12 tasks, 600 episodes'."""
    different = len(set(tasks))
    return f"{episodes} episodes" if not tasks else f"{different} task{'s' * (different > 1)}, {episodes} episodes"


def half_width(values: Tensor, confidence: float = 0.95) -> float:
    """The half width of Student's t interval for the mean of values [n]; infinite for fewer than two."""
    n = len(values)
    if n < 2:
        return math.inf
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(values.double().std()) / math.sqrt(n)


def compare(a: Score, b: Score, allow: tuple[str, ...] = ()) -> Difference:
    """The paired difference a - b over the same episodes.

    `allow` names protocol fields that may differ, such as ("transductive",).

    Raises ProtocolError where the scores were not measured under the same protocol.
    """
    require_same(a.protocol, b.protocol, allow)
    difference = by_task(a.values - b.values, a.tasks)
    return Difference(float(difference.mean()), half_width(difference), a.protocol.metric)


def evaluate(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 600,
    seed: int = 1,
    steps: int | None = None,
    transductive: bool | None = None,
    ensemble: int = 1,
    controls: Sequence[str] = (),
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The score of a trained learner on test tasks.

    `trained` has `.learner` and `.theta`. Test episode i depends only on (seed, i), so every learner gets the same
    episodes and scores can be compared in pairs. `steps`: inner steps at test, if other than in training.
    `transductive`: None keeps the network's own setting; False normalises queries with the support set's statistics.
    `ensemble`: this many thetas, those with the best validation scores, learn each task, and their answers (class
    probabilities or values) are averaged. This needs training with `keep`; the controls use the best theta only.
    `controls`: names from quickstudy.controls.CONTROLS. `engine`: "auto" times the engines. `progress(n)` is called
    with the number of episodes done since the last call. In a process group every rank makes the same call: the ranks
    divide the episodes, and all get the score.

    Raises ConfigError where a setting does not fit the learner and where training kept fewer thetas than the ensemble
    needs, DataError where the learner cannot use the tasks, NonFiniteError where an output is not finite, and RankError
    where other ranks cannot be reached.
    """
    from quickstudy.controls import check_control, control  # controls are learners, evaluated by this module

    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}.")
    for name in controls:
        check_control(name)
    thetas = best_thetas(trained, ensemble)
    learner = for_test(trained.learner, tasks, steps, transductive)
    score = _score(learner, thetas, tasks, episodes, seed, engine, progress)
    found = {}
    for name in controls:
        variant, theta, source = control(name, learner, trained.theta, tasks)
        try:
            found[name] = _score(variant, (theta,), source, episodes, seed, engine, progress, control=name)
        except NonFiniteError:
            warnings.warn(f"the control {name!r} diverged on these tasks and is left out", stacklevel=2)
    return dataclasses.replace(score, controls=found) if found else score


def for_test(learner: Learner, tasks: Any, steps: int | None = None, transductive: bool | None = None) -> Learner:
    """The learner with its test settings: the tasks' ways if it has ways, other steps, another normalisation.

    Raises ConfigError where the learner does not have such a setting, or has outputs for fewer ways.
    """
    names = {f.name for f in dataclasses.fields(learner)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    ways = getattr(tasks, "ways", None)
    if "ways" in names and ways and learner.ways is not None:  # type: ignore[attr-defined]
        changes |= with_ways(learner, ways)
    if steps is not None:
        if "steps" not in names:
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
    most = learner.ways  # type: ignore[attr-defined]
    if ways > most:
        raise ConfigError(
            f"this {type(learner).__name__} was trained on {most} ways and has outputs for no more, but the task has "
            f"{ways} classes. Test it with {most} ways or fewer, or train with ways={ways}."
        )
    return {}


def _normalised(learner: Learner, policy: str) -> dict[str, Any]:
    if normalisation_of(learner) not in ("batch", "support"):
        raise ConfigError(
            f"{type(learner).__name__} normalises by {normalisation_of(learner)!r}, which never sees other queries: "
            "there is no transductive and no inductive form of it. Leave `transductive` out."
        )
    return {name: with_normalisation(model, policy) for name, model in networks(learner).items()}


def _score(
    learner: Learner,
    thetas: Sequence[Theta],
    tasks: Any,
    episodes: int,
    seed: int,
    engine: str,
    progress: Callable[[int], None] | None,
    control: str | None = None,
) -> Score:
    device = device_of(thetas[0])
    first = sample_block(tasks, episodes, seed, device, 0)
    outputs = check_episodes(learner, thetas[0], first)
    metric = "accuracy" if is_classification(first) else "mean squared error"

    def measure(episodes: Episodes, chosen: str) -> Tensor:
        return engines.map_learner(lambda one, e: _ensemble_score(one, thetas, e), learner, episodes, chosen)

    few = first_tasks(first, TRIAL)
    with seeds.seeded(seed, "choose"):
        choice = ranks.same_engine(trials.choose(lambda name: measure(few, name), engine, count(few), device))
    result = torch.zeros(episodes, dtype=torch.float64)
    for number in range(ranks.rank(), math.ceil(episodes / BLOCK), ranks.size()):  # each rank takes every N-th block
        block = sample_block(tasks, episodes, seed, device, number) if number else first
        check_values(block, outputs)
        begin = number * BLOCK
        with seeds.seeded(seed, "evaluate", number):
            result[begin : begin + BLOCK] = measure(block, choice.engine).double().cpu()
        if progress:
            progress(min(ranks.size() * BLOCK, episodes - begin))
    result = ranks.total(result)
    if not torch.isfinite(result).all():
        first = int((~torch.isfinite(result)).nonzero()[0])
        raise NonFiniteError(
            f"test episode {first} gives an output that is not finite. Lower the inner learning rate or the steps."
        )
    if metric != "accuracy":  # convert to the squared unit of the answers
        result = result * getattr(tasks, "unit", 1.0) ** 2
    protocol = protocol_of(learner, tasks, metric, episodes, seed, control, first, len(thetas))
    return Score(result, protocol, tasks=tasks_of(tasks, episodes, seed))


def tasks_of(tasks: Any, episodes: int, seed: int) -> tuple[str, ...]:
    """The name of each test episode's task; empty if the source draws new tasks each time."""
    if not hasattr(tasks, "facts") or "task" not in tasks.facts(1, seeds.generator(seed, "test", 0)):
        return ()
    return tuple(tasks.facts(1, seeds.generator(seed, "test", i))["task"][0] for i in range(episodes))


def episode_score(learner: Learner, theta: Theta, episode: Episode) -> Tensor:
    """The accuracy on the query set, or the mean squared error for real-valued answers: a scalar."""
    return _ensemble_score(learner, (theta,), episode)


def _ensemble_score(learner: Learner, thetas: Sequence[Theta], episode: Episode) -> Tensor:
    output = mean_answer(learner, thetas, episode)
    if episode.query.y.is_floating_point():
        return ((output - episode.query.y) ** 2).mean()
    # NaN logits would silently count as a wrong answer. Adding them makes the score NaN, which is refused.
    right = (output.argmax(1) == episode.query.y).double().mean()
    return right + 0 * output.sum()


def sample_blocks(tasks: Any, episodes: int, seed: int, device: torch.device) -> Iterator[Episodes]:
    """Episodes 0..episodes-1 of the test seed, in blocks; each episode is drawn with its own generator."""
    for number in range(math.ceil(episodes / BLOCK)):
        yield sample_block(tasks, episodes, seed, device, number)


def sample_block(tasks: Any, episodes: int, seed: int, device: torch.device, number: int) -> Episodes:
    """The block with this number, from 0, of the episodes of `sample_blocks`."""
    places = range(number * BLOCK, min((number + 1) * BLOCK, episodes))
    return moved(concat([tasks.sample(1, seeds.generator(seed, "test", i)) for i in places]), device)


def check_episodes(learner: Learner, theta: Theta, episodes: Episodes) -> int | None:
    """Refuse episodes that the learner cannot use; returns its number of outputs, None if that depends on the task.

    Raises DataError where there are NaNs, wrong shapes, or labels for which the model has no output.
    """
    _check_finite(episodes)
    fits, one = fitted(learner, unstack(episodes)[0]) if isinstance(episodes, list) else (learner, unstack(episodes)[0])
    untouched = dataclasses.replace(fits, steps=0) if hasattr(fits, "steps") else fits  # type: ignore[type-var]
    try:
        with torch.no_grad():
            # Check labels first, with the unadapted model, because torch's own error does not name the label.
            output = untouched.predict(theta, untouched.adapt(theta, one.support), one.query.x)
            outputs = None if isinstance(episodes, list) and not learner.fixed_ways else output.shape[1]
            _check_answers(output, one.query.y, episodes, outputs)
            fits.predict(theta, fits.adapt(theta, one.support), one.query.x)
    except (RuntimeError, IndexError) as error:
        raise DataError(
            f"{type(learner).__name__} cannot read this task: support x {tuple(one.support.x.shape)}, y "
            f"{tuple(one.support.y.shape)} with values {_span(one.support.y)}, query x {tuple(one.query.x.shape)}. "
            f"torch says: {str(error).splitlines()[0]}. Check channels, image size and ways against what the model was "
            "built for."
        ) from error
    return outputs


def check_values(episodes: Episodes, outputs: int | None) -> None:
    """Raise DataError for NaN, and for labels outside 0..outputs-1, which would silently give a wrong score."""
    _check_finite(episodes)
    if not is_classification(episodes):
        return
    labels = torch.cat([batch.y.reshape(-1) for one in whole(episodes) for batch in one])
    if int(labels.min()) >= 0 and (outputs is None or int(labels.max()) < outputs):
        return
    most = "" if outputs is None else f"..{outputs - 1}, as the model has {outputs} outputs"
    raise DataError(
        f"labels must be 0{most or ' or more'}; got {_span(labels)}. "
        "Renumber the labels, or build the model with as many outputs as there are classes."
    )


def _check_finite(episodes: Episodes) -> None:
    for one in whole(episodes):
        for name, batch in zip(("support", "query"), one, strict=True):
            if batch.x.is_floating_point() and not torch.isfinite(batch.x).all():
                raise DataError(f"the {name} inputs hold NaN or infinity. Remove or fill the missing values first.")
            if batch.y.is_floating_point() and not torch.isfinite(batch.y).all():
                raise DataError(f"the {name} answers hold NaN or infinity. Remove those examples first.")


def _check_answers(output: Tensor, y: Tensor, episodes: Episodes, outputs: int | None) -> None:
    if y.is_floating_point() and output.shape != y.shape:
        raise DataError(
            f"the model answers with shape {tuple(output.shape)}, but the tasks' y has shape {tuple(y.shape)}. "
            "For regression give y as [n, d] and a model with d outputs."
        )
    check_values(episodes, outputs)


def _span(y: Tensor) -> str:
    return f"{y.min().item():g}..{y.max().item():g}"


def device_of(theta: Theta) -> torch.device:
    """The device of theta; the CPU if theta is empty."""
    return next(iter(theta.values())).device if theta else torch.device("cpu")


def protocol_of(
    learner: Learner,
    tasks: Any,
    metric: str,
    episodes: int,
    seed: int,
    control: str | None = None,
    seen: Episodes | None = None,
    ensemble: int = 1,
) -> Protocol:
    """The protocol under which `learner` is tested on `tasks`.

    Sizes that the task source does not report are taken from `seen`, a batch of its episodes.
    """
    about = (_sizes(seen) if seen else {}) | describe(tasks)
    return Protocol(
        learner=type(learner).__name__,
        tasks=about["name"],
        split=about.get("split", "unknown"),
        ways=about.get("ways"),
        shots=about.get("shots", 0),
        queries=about.get("queries", 0),
        metric=metric,
        episodes=episodes,
        seed=seed,
        transductive=is_transductive(learner),
        normalisation=normalisation_of(learner),
        steps=getattr(learner, "steps", None),
        ensemble=ensemble,
        control=control,
    )


def _sizes(episodes: Episodes) -> dict[str, Any]:
    """Ways, shots and queries: the largest of any task."""
    found = [_sizes_of(support.y, query.y) for support, query in unstack(episodes)]
    ways = [one["ways"] for one in found if one["ways"]]
    return {name: max(one[name] for one in found) for name in ("shots", "queries")} | {"ways": max(ways, default=None)}


def _sizes_of(support: Tensor, query: Tensor) -> dict[str, Any]:
    ways = None if support.is_floating_point() else len(support.unique())
    return {"ways": ways, "shots": len(support) // (ways or 1), "queries": len(query) // (ways or 1)}
