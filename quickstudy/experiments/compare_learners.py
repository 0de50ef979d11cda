"""Compares learners on the same tasks: each gets the same training time and is tested on the same episodes.

    iterations = minutes / measured seconds of one iteration      a cheaper learner gets more iterations
    test       episode i is drawn from (seed, i) for all learners, and each query is answered by itself (inductive), so
               all scores are paired

The theta that is best on validation tasks is tested, so test tasks choose nothing. Baselines that need no training are
tested as well.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quickstudy.base import files
from quickstudy.base.machine import machine
from quickstudy.base.progress import counting_bar
from quickstudy.base.seeds import derive, generator
from quickstudy.engine import ranks
from quickstudy.engine.choice.choose import choose_engine
from quickstudy.engine.fitting import device_of, fitted, for_test, is_transductive
from quickstudy.episodes import moved, unstack
from quickstudy.errors import ConfigError, NonFiniteError, RunError
from quickstudy.evaluation.measures.intervals import interval_coverage
from quickstudy.evaluation.measures.probabilities import classification_calibration
from quickstudy.evaluation.score import Score
from quickstudy.evaluation.scoring import evaluate
from quickstudy.experiments.comparison import Entry, LearnerComparison, Trial
from quickstudy.experiments.evaluate_run import adaptation_timing
from quickstudy.learner import Learner, networks, offers, takes
from quickstudy.tasks.changed import ChangedSupport, without_support
from quickstudy.tasks.source import describe, source_of
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.trained.load import load
from quickstudy.trained.trained import Trained
from quickstudy.training.checkpoint import read_metrics
from quickstudy.training.loop import meta_steps
from quickstudy.training.outer import optimizer_of
from quickstudy.training.session import train as train_learner

VALIDATIONS, VALIDATED = 5, 50  # validations in a training, and episodes in each: cheap compared with the training
MEASURED = (3, 20, 5.0)  # to time an iteration: fewest and most iterations, and after how many seconds to stop
CALIBRATED = 100  # test episodes for the calibration of probabilities and intervals
FOUND = "comparison.json"


class Given(NamedTuple):
    """The tasks and settings that all learners of a comparison share."""

    train: Any
    val: Any
    test: Any
    minutes: float
    meta_batch: int
    seeds: tuple[int, ...]
    episodes: int
    out: Path
    resume: bool
    device: torch.device
    progress: bool
    about: Mapping[str, Any]

    def settings(self) -> dict[str, Any]:
        words = ("minutes", "meta_batch", "seeds", "episodes")
        return {word: getattr(self, word) for word in words} | {"tasks": describe(self.test), **self.about}


def compare_learners(
    learners: Mapping[str, Callable[[], Learner]],
    train: Any,
    test: Any,
    *,
    out: str | os.PathLike,
    val: Any = None,
    baselines: Mapping[str, Trained] | None = None,
    minutes: float = 2.0,
    meta_batch: int = 16,
    seeds: Sequence[int] = (0,),
    episodes: int = 600,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> LearnerComparison:
    """Train every learner for the same time, once for each seed, and test all on the same episodes.

    learners          name -> function that builds the learner, with new weights at each call
    train, val, test  task sources; the theta that is best on `val` is tested
    out               folder for comparison.json and a run folder for each training
    baselines         name -> trained object that needs no training, such as `qs.per_task(...)`
    minutes           of training for each learner and seed, without validation
    meta_batch        tasks per iteration
    seeds             one training of each learner for every seed
    episodes          test episodes
    resume            continue the same comparison where it was interrupted
    about             plain values to keep among the settings

    Learners that diverge are left out, and the reason is in `failed`. Raises ConfigError where the settings make no
    comparison, RunError where `out` holds something else, NonFiniteError where every learner diverges.

    >>> import quickstudy as qs
    >>> tasks = [qs.tasks.glyphs(split, queries=5) for split in ("train", "test")]
    >>> learners = {"protonet": lambda: qs.ProtoNet(qs.nn.conv4(filters=8))}
    >>> found = qs.compare_learners(learners, *tasks, out="runs/which", minutes=1)  # doctest: +SKIP
    """
    ranks.alone("compare_learners")  # training times are only comparable in a single process
    sizes = (minutes, meta_batch, tuple(seeds), episodes)
    given = Given(train, val, test, *sizes, Path(out), resume, torch.device(device), progress, dict(about or {}))
    _check(given, learners)
    _open(given)
    todo = {name: functools.partial(_untrained, name, one, given) for name, one in (baselines or {}).items()}
    todo |= {name: functools.partial(_entry, name, build, given) for name, build in learners.items()}
    entries, failed = [], {}
    for name, measure in todo.items():
        try:
            entries.append(measure())
        except NonFiniteError as error:
            failed[name] = str(error)
    if not entries:
        raise NonFiniteError(f"there is nothing to compare: {'; '.join(f'{n}: {why}' for n, why in failed.items())}")
    best_first = sorted(entries, key=lambda entry: entry.score.mean, reverse=entries[0].score.metric.higher_is_better)
    found = LearnerComparison(tuple(best_first), given.settings() | {"machine": machine()}, failed)
    files.write_json(given.out / FOUND, found.to_dict())
    return found


def _check(given: Given, learners: Mapping[str, Any]) -> None:
    if not given.minutes > 0:
        raise ConfigError(f"minutes of training must be more than 0, got {given.minutes}.")
    if given.episodes < 2 or not given.seeds or not learners:
        raise ConfigError("a comparison needs at least one learner, one seed, and two test episodes.")


def _open(given: Given) -> None:
    """Write settings.json. Refuses a folder with other contents, and one with this comparison unless it resumes."""
    path, now = given.out / "settings.json", json.loads(json.dumps(given.settings()))
    if path.exists():
        known = files.read_json(path)
        if differing := [word for word in now if word != "command" and known.get(word) != now[word]]:
            word = differing[0]
            raise RunError(
                f"the comparison in {str(given.out)!r} was made with {word} = {known.get(word)}, now it is {now[word]}."
                " Go on with the same settings and --resume, or choose another --out."
            )
    if given.out.exists() and any(given.out.iterdir()) and not (path.exists() and given.resume):
        raise RunError(
            f"the folder {str(given.out)!r} is not empty. To go on with the comparison there pass --resume "
            "(resume=True); for a new one choose another --out."
        )
    files.write_json(path, now)


def _untrained(name: str, trained: Trained, given: Given) -> Entry:
    score = _tested(name, trained, given)
    return _entry_of(name, trained, (Trial(0, score, 0, 0.0),), None, given)


def _entry(name: str, build: Callable[[], Learner], given: Given) -> Entry:
    trials = tuple(_trial(name, build, seed, given) for seed in given.seeds)
    file = given.out / f"{name}-seed{given.seeds[0]}" / "learner.qs"
    trained = load(file, **networks(build()))  # a file does not contain the user's own modules
    assert isinstance(trained, Trained)
    return _entry_of(name, trained, trials, file.stat().st_size, given)


def _entry_of(name: str, trained: Trained, trials: tuple[Trial, ...], size: int | None, given: Given) -> Entry:
    timing = adaptation_timing(_inductive(trained), given.test)
    kind = type(trained.learner)
    meta = kind.episodic and bool(trained.theta)
    seconds = (timing["adapt_seconds"], timing["predict_seconds"])
    return Entry(
        name,
        kind.__name__,
        meta,
        trials,
        *seconds,
        size,
        _unlabelled(trained, given),
        _calibration_error(trained, given),
    )


def _trial(name: str, build: Callable[[], Learner], seed: int, given: Given) -> Trial:
    """The finished trial from the run folder, or a new one: train and test the learner."""
    folder = given.out / f"{name}-seed{seed}"
    if (folder / "trial.json").exists():
        return Trial.from_dict(files.read_json(folder / "trial.json"))
    torch.manual_seed(derive(seed, "weights"))
    learner = build()
    plan = _plan(learner, folder, seed, given)
    trained = train_learner(
        learner,
        given.train,
        out=folder,
        seed=seed,
        meta_batch=given.meta_batch,
        val=given.val,
        val_every=math.ceil(plan["iterations"] / VALIDATIONS),
        val_episodes=VALIDATED,
        resume=folder.exists(),
        device=given.device,
        progress=given.progress,
        **plan,
    )
    timing, curve = files.read_json(folder / "timing.json"), _curve(folder, plan["iterations"])
    seconds = timing["sampling"] + timing["computing"]
    score = _tested(name, trained, given)
    trial = Trial(seed, score, plan["iterations"], seconds, tuple((seconds * share, v) for share, v in curve))
    files.write_json(folder / "trial.json", trial.to_dict())
    return trial


def _plan(learner: Learner, folder: Path, seed: int, given: Given) -> dict[str, Any]:
    """The iterations and the engine of a training; an interrupted training keeps those it began with."""
    path = given.out / f"{folder.name}.plan.json"
    if not path.exists():
        iterations, engine = iterations_within(60 * given.minutes, learner, given, seed)
        files.write_json(path, {"iterations": iterations, "engine": engine})
    plan = files.read_json(path)
    if given.progress:
        print(f"{folder.name}: {plan['iterations']:,} iterations", file=sys.stderr)
    return plan


def iterations_within(seconds: float, learner: Learner, given: Given, seed: int) -> tuple[int, str]:
    """How many iterations of the outer loop fit into `seconds` of training, and the engine for them.

    A learner without meta-parameters gets one iteration.
    """
    theta = {name: value.detach().clone().to(given.device) for name, value in learner.init().items()}
    if not theta:
        return 1, "loop"
    source = source_of(given.train)
    tasks = source if learner.episodic else source.pooled()
    first = moved(tasks.draw(given.meta_batch, generator(seed, "train", 0), learner, theta), given.device)
    engine = choose_engine(learner, theta, first, "auto", seed).engine
    optimizer, (least, most, enough) = optimizer_of(learner.outer())(list(theta.values())), MEASURED
    sizes = {"iterations": most, "meta_batch": given.meta_batch, "seed": seed, "engine": engine}
    taken: list[float] = []
    for step in meta_steps(learner, theta, tasks, optimizer, **sizes):
        taken.append(step.sampling + step.computing)
        if len(taken) > least and sum(taken) > enough:
            break
    return max(1, round(seconds / statistics.median(taken[1:]))), engine


def _curve(folder: Path, iterations: int) -> list[tuple[float, float]]:
    """The validation curve: (share of the training's iterations, score on validation tasks)."""
    return [(line["iteration"] / iterations, line["val"]) for line in read_metrics(folder) if "val" in line]


def _inductive(trained: Trained) -> Trained:
    learner = trained.learner
    if not is_transductive(learner):
        return trained
    return dataclasses.replace(trained, learner=for_test(learner, None, transductive=False))


def _tested(name: str, trained: Trained, given: Given) -> Score:
    with counting_bar(f"testing {name}", given.episodes, given.progress) as count:
        return evaluate(_inductive(trained), given.test, episodes=given.episodes, progress=count)


def _unlabelled(trained: Trained, given: Given) -> Score | None:
    """The score of answers without a support set; None where it does not exist.

    It exists for regression and for classes that are the same in all tasks, where the learner can answer without
    support examples or its inner steps alone use the support answers.
    """
    learner, tasks = _inductive(trained).learner, given.test
    if source_of(tasks).ways and not isinstance(tasks, GroupTasks):
        return None  # only the support set defines the classes of such a task
    if learner.from_nothing:
        return evaluate(trained, ChangedSupport(tasks, without_support), episodes=given.episodes)
    if takes(learner, "steps") and _ignores_answers(for_test(learner, tasks, steps=0), trained, tasks):
        return evaluate(_inductive(trained), tasks, episodes=given.episodes, steps=0)
    return None


def _ignores_answers(learner: Learner, trained: Trained, tasks: Any) -> bool:
    """Whether predictions ignore the support answers. They do not where the start is made from them, as in LEO."""
    drawn = source_of(tasks).draw(1, generator(0, "answers"), learner, trained.theta)
    one, (support, query) = fitted(learner, unstack(moved(drawn, device_of(trained.theta)))[0])
    with torch.no_grad():
        outputs = [
            one.predict(trained.theta, one.adapt(trained.theta, support._replace(y=y)), query.x)
            for y in (support.y, support.y.flip(0))
        ]
    return torch.equal(*outputs)


def _calibration_error(trained: Trained, given: Given) -> float | None:
    """Expected calibration error for classes; for values, how far the coverage of 90 % intervals is from 90 %.

    None for values without a predicted distribution.
    """
    few = min(given.episodes, CALIBRATED)
    if source_of(given.test).ways:
        return classification_calibration(_inductive(trained), given.test, episodes=few).ece
    if not offers(trained.learner, "distribution"):
        return None
    measured = interval_coverage(trained, given.test, episodes=few, levels=(0.9,)).sizes[-1]
    return abs(measured.coverage[0].mean - 0.9)
