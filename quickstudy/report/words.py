"""Puts numbers and settings into words: what a score means, what a control shows, how the time was spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from quickstudy.base.words import listed, percent, plural
from quickstudy.evaluation import protocol
from quickstudy.evaluation.metric import ACCURACY, LABEL_ACCURACY, MEAN_SQUARED_ERROR, Metric
from quickstudy.evaluation.score import Difference, Score, over_what
from quickstudy.experiments.run import Config, Run, Timing

# Names for one example and one class of a task source, where "example" and "class" would sound stiff.
NOUNS = {"omniglot": ("drawing", "character", "characters"), "glyphs": ("drawing", "character", "characters")}
NOUNS |= dict.fromkeys(("cifar_fs", "fc100"), ("photograph", "class", "classes"))


class Said(NamedTuple):
    """What the report says of a control."""

    label: str
    beaten: str  # how a sentence names it: "MAML beats ..."
    what: str
    claim: str  # what follows when the learner beats it


CONTROLS = {
    "zero_steps": Said(
        "without inner steps", "zero inner steps", "theta alone, not adapted to the task", "Adaptation matters"
    ),
    "shuffled_labels": Said(
        "with shuffled support labels",
        "shuffled labels",
        "support answers permuted at random",
        "The support answers matter",
    ),
    "untrained": Said(
        "without meta-training",
        "its untrained self",
        "the same learner with the theta that its training began with",
        "Meta-training pays",
    ),
    "nearest_centroid": Said(
        "nearest centroid",
        "the nearest centroid",
        "nearest class mean of the raw input",
        "Likeness of raw inputs is not enough",
    ),
    "tf_idf_centroid": Said(
        "nearest centroid of TF-IDF",
        "the nearest centroid of TF-IDF",
        "the class mean at the smallest angle, of subwords weighted by TF-IDF",
        "Shared subwords are not enough",
    ),
    "support_mean": Said(
        "mean of the support answers",
        "the mean of the support answers",
        "the same guess for every query of a task",
        "The inputs matter",
    ),
    "linear_probe": Said(
        "linear probe",
        "a linear probe",
        "a linear model of the raw input, fitted on the support set",
        "A linear model is not enough",
    ),
    "tf_idf_regression": Said(
        "logistic regression on TF-IDF",
        "logistic regression on TF-IDF",
        "softmax regression on subwords weighted by TF-IDF, fitted on the support set",
        "A linear model of subwords is not enough",
    ),
    "nil": Said(
        "no inner loop (NIL)",
        "NIL",
        "theta’s features below the head, support labels weighed by cosine similarity",
        "Adaptation adds to the features",
    ),
    "from_scratch": Said(
        "from scratch",
        "training from scratch",
        "the same network from random weights, fitted on the support set",
        "Meta-training pays",
    ),
}


def said(name: str) -> Said:
    """What is said of a control; of one that this version does not know, its name."""
    return CONTROLS.get(name, Said(name, name, "", "Beaten"))


FIELDS = {
    "lr": "inner learning rate",
    "steps": "inner steps in training",
    "first_order": "first order only",
    "adjoint": "how the inner loop is differentiated",
    "model": "network",
    "encoder": "network",
    "loss": "loss function",
    "ways": "classes per task",
}


# --- scores ----------------------------------------------------------------------------------------------------------


def amount(score: Score) -> str:
    """The mean alone: '97.4 %', '0.152'."""
    return score.metric.format.value(score.mean)


def spread(score: Score) -> str:
    """The interval alone: '± 0.3', or '(99.6 to 100.0)' where its sides differ."""
    return score.metric.format.ends(score.mean, score.low, score.high)


def both(score: Score) -> str:
    """Mean and interval without the metric's name, for where that stands beside them."""
    return score.metric.format.between(score.mean, score.low, score.high)


def signed(difference: Difference, points: bool = True) -> str:
    """A difference with its sign: '+40.5 points ± 3.9', '−1.37 ± 0.32'; `points`: with its unit."""
    return difference.signed(minus="−", points=points)


def chance(score: Score) -> float | None:
    """The accuracy of guessing; None for other metrics."""
    return _guessing(score.metric, score.protocol.ways)


def level(metric: Metric, ways: int | None) -> float | None:
    """The accuracy of guessing as it is plotted, in percent; None for other metrics."""
    guess = _guessing(metric, ways)
    return None if guess is None else metric.format.times * guess


def _guessing(metric: Metric, ways: int | None) -> float | None:
    return 1 / ways if ways and metric == ACCURACY else None


def meaning(score: Score) -> str:
    """The sentence that explains the headline number."""
    unseen = "unseen " if score.protocol.split in ("test", "val") else ""
    return MEANINGS.get(score.metric.name, _of_values)(score, unseen)


def _of_accuracy(score: Score, unseen: str) -> str:
    p = score.protocol
    if p.ways is None:  # classes are those of outputs, and not of a task
        return _of_labels(score, unseen)
    example, kind, kinds = NOUNS.get(p.tasks, ("example", "class", "classes"))
    guess = f"guessing among {p.ways} gives {percent(1 / p.ways)}"
    return f"of {example}s of {unseen}{kinds} named right, from {plural(p.shots, example)} of each {kind}; {guess}."


def _of_labels(score: Score, unseen: str) -> str:
    return f"of the labels in {unseen}tasks answered right, after {plural(score.protocol.shots, 'support example')}."


def _of_squares(score: Score, unseen: str) -> str:
    miss = f"{math.sqrt(max(score.mean, 0)):.2g} in the units of y"
    return f"{_of_values(score, unseen).removesuffix('.')}; the typical miss is {miss}."


def _of_values(score: Score, unseen: str) -> str:
    p = score.protocol
    shots = f"{plural(p.shots, 'support example')} of each{' class' if p.ways else ''}"
    better = "Larger" if score.metric.higher_is_better else "Smaller"
    return f"{p.metric} on the queries of {unseen}tasks, after {shots}. {better} is better."


MEANINGS: dict[str, Callable[[Score, str], str]] = {  # by name of the metric; _of_values for all others
    ACCURACY.name: _of_accuracy,
    LABEL_ACCURACY.name: _of_labels,
    MEAN_SQUARED_ERROR.name: _of_squares,
}


def under(score: Score) -> str:
    """The protocol of the headline number: normalisation, inner steps, test tasks and interval."""
    p = score.protocol
    over = f"95 % interval over {p.episodes:,} test tasks"
    if score.tasks:
        over = f"95 % interval over {over_what(p.episodes, score.tasks)}; each task counts once"
    if math.isinf(score.low):
        over = "measured on a single test task, so there is no interval"
    if (trainings := len(score.each)) > 1:
        over += f"; {trainings} trainings, whose spread it holds"
    seen = f" Transductive: {together(p)}, so every answer leans on the others."
    return f"{p.describe()}; {over}.{seen if p.transductive else ''}"


def together(p: protocol.Protocol) -> str:
    """What the queries of a task share in a transductive measurement."""
    return f"the queries of a task were {'normalised' if p.normalisation == 'batch' else 'answered'} together"


def warnings(score: Score) -> list[str]:
    """Reasons why the score may mislead: its split, one test task, or an interval that reaches down to chance."""
    reasons, p = [], score.protocol
    if p.split not in ("test", "val"):
        reasons.append(f"Measured on the split “{p.split}”: nothing shows that these tasks were not trained on.")
    guess = chance(score)
    if math.isinf(score.low):
        reasons.append("One test task has no interval: nothing follows from this number.")
    elif guess is not None and score.low <= guess:
        reasons.append("Not shown to be better than guessing: the interval reaches down to chance.")
    return reasons


def differing(a: protocol.Protocol, b: protocol.Protocol) -> str:
    """Why two protocols cannot be compared: 'tasks (omniglot against sinusoid), seed (1 against 2)'."""
    pairs = protocol.differences(a, b).items()
    return ", ".join(f"{name} ({shown(one)} against {shown(other)})" for name, (one, other) in pairs)


def shown(value: Any) -> str:
    """A plain value as text: 'none', 'yes', 'no', or the value itself."""
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


# --- controls --------------------------------------------------------------------------------------------------------


def on_the_first(score: Score, control: Score) -> str:
    """What a control that answered only some of the score's test tasks has to say of it; '' for all others."""
    n = len(control.values)
    return f"; on the first {n} test tasks, and compared on these" if n < len(score.values) else ""


def left_out(score: Score) -> str:
    """Which controls could not be run, and why: 'Not run: nearest centroid (the inputs ...).'; '' if all were."""
    reasons: dict[str, list[str]] = {}
    for name, why in score.left_out.items():
        reasons.setdefault(why, []).append(said(name).label)
    listed_by_reason = [f"{listed(labels)} ({why})" for why, labels in reasons.items()]
    return f"Not run: {'; '.join(listed_by_reason)}." if reasons else ""


def reading(name: str, score: Score, control: Score, difference: Difference) -> tuple[bool, str]:
    """Whether the score beats the control `name`, and the conclusion in words."""
    about = said(name)
    if difference.decided and score.metric.sign * difference.mean > 0:
        return True, f"{about.claim}: {about.label} {amount(control)}."
    if difference.decided:
        return False, f"Not beaten: {about.label} is better than {score.protocol.learner}."
    if math.isinf(difference.low):
        return False, "Not beaten: one test task cannot show it."
    return False, "Not beaten: the interval of the difference holds zero."


# --- training --------------------------------------------------------------------------------------------------------


def trained_on(run: Run) -> str:
    """Which learner was trained on which tasks, in one or two sentences."""
    c, tasks = run.config, run.config.tasks
    source = f"{tasks.get('name', 'tasks')}, split “{tasks.get('split', 'unknown')}”"
    if run.parameters == 0:
        return f"{c.learner} has no meta-parameters: nothing was trained. Its tasks are {source}."
    if run.parameters is None:
        return f"{c.learner} is to learn from {source}{_pool(tasks)}, {_size(tasks)}. {_unfinished(run)}"
    done = int(run.metrics[-1]["iteration"]) if run.metrics else c.iterations
    early = f" of the {c.iterations:,} asked for" if done < c.iterations else ""
    how, unit, units = ("pretrained", "batch", "batches") if tasks.get("pooled") else ("meta-trained", "task", "tasks")
    seen = f"{plural(done, 'iteration')}{early} with {plural(c.meta_batch, unit, units)} each"
    return (
        f"{c.learner} was {how} for {seen}: {done * c.meta_batch:,} {units} of {source}{_pool(tasks)}, {_size(tasks)}."
    )


def _unfinished(run: Run) -> str:
    done = int(run.metrics[-1]["iteration"]) if run.metrics else 0
    return (
        f"Training has not finished: {done:,} of {plural(run.config.iterations, 'iteration')} are in metrics.jsonl. "
        "Continue it with `quickstudy train` and --resume."
    )


def _pool(tasks: Mapping[str, Any]) -> str:
    return f" ({plural(tasks['classes'], 'class', 'classes')})" if "classes" in tasks else ""


def _size(tasks: Mapping[str, Any]) -> str:
    if tasks.get("pooled"):
        return "over all classes at once"
    ways, shots, queries = (tasks.get(word) for word in ("ways", "shots", "queries"))
    if ways:
        return f"{ways}-way {shots}-shot with {plural(queries or 0, 'query', 'queries')} per class"
    return f"with {shots} support and {queries} query points each" if shots else "of its own sizes"


def settings(run: Run) -> list[tuple[str, str, str]]:
    """Rows of the settings table: the setting in words, its name in code, and its value."""
    c = run.config
    rows = [("learner", "", c.learner)]
    rows += [(FIELDS.get(name, name), name, setting(value)) for name, value in c.fields.items()]
    if run.parameters is not None:
        rows.append(("numbers in theta", "", f"{run.parameters:,}"))
    if run.parameters == 0:
        return rows
    rows.append(("iterations of the outer loop", "iterations", f"{c.iterations:,}"))
    return [*rows, ("tasks per iteration", "meta_batch", f"{c.meta_batch:,}"), ("seed of the run", "seed", str(c.seed))]


def setting(value: Any) -> str:
    """A hyper-parameter as text: a network as the call that builds it, a function by its name."""
    if isinstance(value, Mapping) and isinstance(value.get("network"), Mapping):
        options = dict(value["network"])
        return f"{options.pop('name', 'network')}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    if isinstance(value, Mapping):
        return str(value.get("text", dict(value))).split("\n")[0]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting, value)) or "none"
    return shown(value)


def layers(config: Config) -> dict[str, str]:
    """The networks among the learner's fields, with their layers as text."""
    fields = config.fields.items()
    return {name: str(v["text"]) for name, v in fields if isinstance(v, Mapping) and "network" in v and "text" in v}


def shares(timing: Timing) -> dict[str, tuple[str, float]]:
    """The parts of the training time: key -> description, and share of the total from 0 to 1."""
    total = max(timing.total, timing.sampling + timing.computing, 1e-9)
    rest = total - timing.sampling - timing.computing - timing.choosing
    parts = [("computing", "computing meta-gradients and updates", timing.computing)]
    parts += [("choosing", "choosing the engine", timing.choosing)] if timing.choosing else []
    parts += [("sampling", "drawing episodes", timing.sampling), ("rest", "validation, logging, checkpoints", rest)]
    return {key: (text, seconds / total) for key, text, seconds in parts}


def protocol_rows(scores: list[Score]) -> list[tuple[str, list[str]]]:
    """Rows of the protocol table: a label, and one value per score."""
    per = "per class" if scores[0].protocol.ways else "per task"
    labels = {
        "tasks": "tasks",
        "split": "split",
        "ways": "ways (classes per task)",
        "shots": f"shots (support examples {per})",
        "queries": f"queries ({per})",
        "metric": "metric",
        "episodes": "episodes (test tasks)",
        "seed": "seed of the test episodes",
        "normalisation": "statistics that normalise queries",
        "transductive": "transductive (queries see each other)",
        "steps": "inner steps at test",
        "ensemble": "models averaged",
    }
    rows = [(label, [shown(getattr(score.protocol, name)) for score in scores]) for name, label in labels.items()]
    return [("score, 95 % interval", [both(score) for score in scores]), *rows]
