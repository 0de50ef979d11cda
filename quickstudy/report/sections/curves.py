"""The curves of one run with their captions: loss and score over iterations, and score over inner steps."""

from __future__ import annotations

from quickstudy.base.figures import Picture, Series, lines
from quickstudy.base.words import plural
from quickstudy.experiments.evaluate_run import CURVE_EPISODES
from quickstudy.experiments.run import Run
from quickstudy.report import words
from quickstudy.training.curve import SHOWN_TASKS


def learning_curves(run: Run) -> list[Picture]:
    """Plots over iterations: the training loss, and the training and validation score."""
    found = [_loss(run)] if run.column("loss")[0] else []
    return found + ([_score_curve(run)] if any(run.column(name)[0] for name in ("accuracy", "error", "val")) else [])


def _loss(run: Run) -> Picture:
    x, y = run.column("loss")
    change = f"from {y[0]:.3g} to {y[-1]:.3g} over {plural(int(x[-1]), 'iteration')}"
    caption = f"Meta-loss on the query sets {change}. Each point is the mean since the last one."
    draw = lines([Series(x, y, "training loss", "s2")], "iteration", "training loss", percent=False)
    return Picture("Training loss", draw, f"Line plot: training loss {change}.", [], caption)


def _score_curve(run: Run) -> Picture:
    accurate = is_accuracy(run)
    name, unit = ("accuracy", 100) if accurate else ("error", 1)
    series = [Series(x, [unit * v for v in y], f"training {name}", "s2", 1, 1.2) for x, y in [run.column(name)] if x]
    series += _validation(run, accurate, unit)
    label = "accuracy (%)" if accurate else "mean squared error"
    ways = run.config.tasks.get("ways")
    level = 100 / ways if accurate and ways else None
    legend = [(s.name, s.colour, s.dash) for s in series] + ([("chance", "muted", 2)] if level else [])
    caption = _score_caption(run, accurate, bool(series and series[0].name.startswith("training")))
    draw = lines(series, "iteration", label, percent=accurate, level=level)
    alt = f"Line plot: {' and '.join(s.name for s in series)} over iterations. {caption}"
    heading = "Accuracy" if accurate else "Mean squared error"
    return Picture(heading, draw, alt, legend, caption)


def _validation(run: Run, accurate: bool, unit: int) -> list[Series]:
    x, y = run.column("val")
    if not x:
        return []
    half = run.column("val_interval")[1]
    bands = [unit * h for h in half] if len(half) == len(y) else None
    best = x[_best(y, accurate)]
    return [Series(x, [unit * v for v in y], "validation, 95 % band", "s1", half=bands, marks=len(x) <= 12, ring=best)]


def _best(values: list[float], accurate: bool) -> int:
    return values.index(max(values) if accurate else min(values))


def _score_caption(run: Run, accurate: bool, training: bool) -> str:
    x, y = run.column("val")
    tasks = min(SHOWN_TASKS, run.config.meta_batch)
    what = "accuracy" if accurate else "error"
    text = f"The training {what} is of {tasks} task{'s' * (tasks != 1)} a point, hence its jumps. " if training else ""
    if not x:
        return text + "There was no validation: train with validation tasks to see when to stop."
    at = _best(y, accurate)
    shown = f"{100 * y[at]:.1f} %" if accurate else f"{y[at]:.3g}"
    end = "still the last one: longer training may help" if at == len(y) - 1 else f"none was better up to {x[-1]:,.0f}"
    return f"{text}Best validation {shown} at iteration {x[at]:,.0f} (ringed, that theta was kept); {end}."


def is_accuracy(run: Run) -> bool:
    """Whether the run's metric is accuracy; else it is an error."""
    if run.score is not None:
        return run.score.protocol.metric == "accuracy"
    return bool(run.column("accuracy")[0]) or (not run.column("error")[0] and bool(run.config.tasks.get("ways")))


def steps_curve(run: Run) -> Picture | None:
    """The score over the number of inner steps at test; None where it was not measured."""
    if run.evaluation is None or not run.evaluation.steps:
        return None
    points, p = run.evaluation.steps, run.evaluation.scores[0].protocol
    accurate = p.metric == "accuracy"
    unit = 100 if accurate else 1
    trained = run.config.fields.get("steps")
    x, y, half = ([point[i] * (1 if i == 0 else unit) for point in points] for i in range(3))
    series = Series(x, y, f"{p.metric}, 95 % band", half=half, marks=True, ring=trained if trained in x else None)
    label = "accuracy (%)" if accurate else p.metric
    caption = _steps_caption(run, min(p.episodes, CURVE_EPISODES))
    level = 100 / p.ways if accurate and p.ways else None
    draw = lines([series], "inner steps at test", label, percent=accurate, level=level)
    legend = [(series.name, "s1", 0)] + ([("chance", "muted", 2)] if level else [])
    return Picture(f"{p.metric.capitalize()} against inner steps", draw, f"Line plot: {caption}", legend, caption)


def _steps_caption(run: Run, episodes: int) -> str:
    assert run.evaluation is not None
    points, metric = run.evaluation.steps, run.evaluation.scores[0].protocol.metric
    show = (lambda v: f"{100 * v:.1f} %") if metric == "accuracy" else (lambda v: f"{v:.3g}")
    order = max if words.higher_is_better(metric) else min
    best, first = order(points, key=lambda p: p.mean), points[0]
    trained = next((p for p in points if p.steps == run.config.fields.get("steps")), None)
    text = f"{show(first.mean)} after {first.steps} inner steps, "
    text += "and no better with more" if best is first else f"best after {best.steps}: {show(best.mean)}"
    if trained is not None and trained is not best:
        text += f"; {show(trained.mean)} after the {trained.steps} of training (ringed)"
    alone = ", by the best checkpoint alone" if run.evaluation.scores[0].protocol.ensemble > 1 else ""
    return f"{text}. Over {plural(episodes, 'test task')}{alone}."
