"""Compares learners on the same tasks: each gets the same training time and is tested on the same episodes.

    training   ends when its time is used up, and what other processes take of the machine does not count
               (`training.budget`): a cheaper learner gets more iterations
    test       episode i is drawn from (seed, i) for all learners, and each query is answered by itself (inductive), so
               all scores are paired

The theta that is best on validation tasks is tested, so test tasks choose nothing. Baselines that need no training are
tested as well.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quickstudy.base import files
from quickstudy.base.machine import machine
from quickstudy.base.progress import counting_bar
from quickstudy.base.seeds import derive
from quickstudy.engine import ranks
from quickstudy.errors import ConfigError, NonFiniteError, RunError
from quickstudy.evaluation.metric import Metric, find_metric, named
from quickstudy.evaluation.score import Score
from quickstudy.evaluation.scoring import evaluate
from quickstudy.experiments.comparison import MINUTES, SEEDS, Entry, LearnerComparison, Trial
from quickstudy.experiments.evaluate_run import adaptation_timing
from quickstudy.experiments.qualities import calibration_error, check_inductive, inductive, unlabelled
from quickstudy.learner import Learner, networks
from quickstudy.tasks.source import describe
from quickstudy.trained.load import load
from quickstudy.trained.trained import Trained
from quickstudy.training.budget import OWN, Budget, used
from quickstudy.training.checkpoint import read_metrics
from quickstudy.training.session import train as train_learner

VALIDATIONS, VALIDATED = 5, 50  # validations in a training, and episodes in each: cheap compared with the training
MOST = 10**9  # iterations: the clock ends a training before
FOUND = "comparison.json"


class Setup(NamedTuple):
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
    metric: str | Metric | None
    about: Mapping[str, Any]

    def settings(self) -> dict[str, Any]:
        words = ("minutes", "meta_batch", "seeds", "episodes")
        scored = {} if self.metric is None else {"metric": named(find_metric(self.metric))}
        return {word: getattr(self, word) for word in words} | scored | {"tasks": describe(self.test), **self.about}


def compare_learners(
    learners: Mapping[str, Callable[[], Learner]],
    train: Any,
    test: Any,
    *,
    out: str | os.PathLike,
    val: Any = None,
    baselines: Mapping[str, Trained] | None = None,
    minutes: float = MINUTES,
    meta_batch: int = 16,
    seeds: Sequence[int] = SEEDS,
    episodes: int = 600,
    metric: str | Metric | None = None,
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
    minutes           of training for each learner and seed, without validation, and without what other processes take
    meta_batch        tasks per iteration
    seeds             one training of each learner for every seed. Of one, verdicts hold for these trainings alone
    episodes          test episodes
    metric            what is scored, in validation too: as in `evaluate`
    resume            continue the same comparison where it was interrupted, or with more learners or seeds
    about             plain values to keep among the settings

    Learners that diverge are left out, and the reason is in `failed`. Raises ConfigError where the settings make no
    comparison or a learner cannot answer each query by itself, RunError where `out` holds something else,
    NonFiniteError where every learner diverges.

    >>> import quickstudy as qs
    >>> tasks = [qs.tasks.glyphs(split, queries=5) for split in ("train", "test")]
    >>> learners = {"protonet": lambda: qs.ProtoNet(qs.nn.conv4(filters=8))}
    >>> found = qs.compare_learners(learners, *tasks, out="runs/which", minutes=1)  # doctest: +SKIP
    """
    ranks.alone("compare_learners")  # training times are only comparable in a single process
    sizes = (minutes, meta_batch, tuple(seeds), episodes)
    setup = Setup(
        train, val, test, *sizes, Path(out), resume, torch.device(device), progress, metric, dict(about or {})
    )
    _check(setup, learners)
    _open(setup)
    todo = {name: functools.partial(_untrained, name, one, setup) for name, one in (baselines or {}).items()}
    todo |= {name: functools.partial(_entry, name, build, setup) for name, build in learners.items()}
    entries, failed = [], {}
    for name, measure in todo.items():
        try:
            entries.append(measure())
        except NonFiniteError as error:
            failed[name] = str(error)
    if not entries:
        raise NonFiniteError(f"there is nothing to compare: {'; '.join(f'{n}: {why}' for n, why in failed.items())}")
    found = LearnerComparison(tuple(entries), setup.settings() | {"machine": machine()}, failed)
    files.write_json(setup.out / FOUND, found.to_dict())
    return found


def _check(setup: Setup, learners: Mapping[str, Any]) -> None:
    if not setup.minutes > 0:
        raise ConfigError(f"minutes of training must be more than 0, got {setup.minutes}.")
    if setup.episodes < 2 or not setup.seeds or not learners:
        raise ConfigError("a comparison needs at least one learner, one seed, and two test episodes.")
    for build in learners.values():
        check_inductive(build(), setup.test)


def _open(setup: Setup) -> None:
    """Write settings.json. Refuses a folder with other contents, and one with this comparison unless it resumes."""
    path, now = setup.out / "settings.json", json.loads(json.dumps(setup.settings()))
    if path.exists():
        known = files.read_json(path)
        more = set(now["seeds"]) >= set(known.get("seeds", ()))
        free = ("command", "seeds") if more else ("command",)
        if differing := [word for word in now if word not in free and known.get(word) != now[word]]:
            word = differing[0]
            raise RunError(
                f"the comparison in {str(setup.out)!r} was made with {word} = {known.get(word)}, now it is {now[word]}."
                " Go on with the same settings and --resume, or choose another --out."
            )
    if setup.out.exists() and any(setup.out.iterdir()) and not (path.exists() and setup.resume):
        raise RunError(
            f"the folder {str(setup.out)!r} is not empty. To go on with the comparison there pass --resume "
            "(resume=True); for a new one choose another --out."
        )
    files.write_json(path, now)


def _untrained(name: str, trained: Trained, setup: Setup) -> Entry:
    score = _tested(name, trained, setup)
    return _entry_of(name, trained, (Trial(0, score, 0, 0.0),), None, setup)


def _entry(name: str, build: Callable[[], Learner], setup: Setup) -> Entry:
    trials = tuple(_trial(name, build, seed, setup) for seed in setup.seeds)
    file = setup.out / f"{name}-seed{setup.seeds[0]}" / "learner.qs"
    trained = load(file, **networks(build()))  # a file does not contain the user's own modules
    assert isinstance(trained, Trained)
    return _entry_of(name, trained, trials, file.stat().st_size, setup)


def _entry_of(name: str, trained: Trained, trials: tuple[Trial, ...], size: int | None, setup: Setup) -> Entry:
    timing = adaptation_timing(inductive(trained), setup.test)
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
        unlabelled(trained, setup.test, setup.episodes, setup.metric),
        calibration_error(trained, setup.test, setup.episodes),
    )


def _trial(name: str, build: Callable[[], Learner], seed: int, setup: Setup) -> Trial:
    """The finished trial from the run folder, or a new one: train and test the learner."""
    folder = setup.out / f"{name}-seed{seed}"
    if (folder / "trial.json").exists():
        return Trial.from_dict(files.read_json(folder / "trial.json"))
    torch.manual_seed(derive(seed, "weights"))
    if setup.progress:
        print(folder.name, file=sys.stderr)
    trained = train_learner(
        build(),
        setup.train,
        out=folder,
        seed=seed,
        iterations=MOST,
        budget=Budget(60 * setup.minutes, VALIDATIONS),
        meta_batch=setup.meta_batch,
        val=setup.val,
        val_episodes=VALIDATED,
        metric=setup.metric,
        resume=folder.exists(),
        device=setup.device,
        progress=setup.progress,
    )
    timing = files.read_json(folder / "timing.json")
    wall = timing["sampling"] + timing["computing"]
    score = _tested(name, trained, setup)
    trial = Trial(seed, score, timing["iterations"], used(timing), _curve(folder), wall)
    files.write_json(folder / "trial.json", trial.to_dict())
    return trial


def _curve(folder: Path) -> tuple[tuple[float, float], ...]:
    """The validation curve: (seconds of training that count, score on validation tasks)."""
    return tuple((line[OWN], line["val"]) for line in read_metrics(folder) if "val" in line)


def _tested(name: str, trained: Trained, setup: Setup) -> Score:
    with counting_bar(f"testing {name}", setup.episodes, setup.progress) as count:
        asked = {"episodes": setup.episodes, "metric": setup.metric, "progress": count}
        return evaluate(inductive(trained), setup.test, **asked)
