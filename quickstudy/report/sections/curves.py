"""The curves of one run with their captions: loss and score over iterations, and score over inner steps."""

from __future__ import annotations

from collections.abc import Iterable

from quickstudy.base.figures import Picture, Series, lines
from quickstudy.base.words import capitalised, plural
from quickstudy.evaluation.metric import Metric
from quickstudy.evaluation.score import Score
from quickstudy.experiments.evaluate_run import CURVE_EPISODES
from quickstudy.experiments.run import Run, StepsPoint
from quickstudy.report import words
from quickstudy.report.sections.section import Section
from quickstudy.training.curve import SHOWN_TASKS


def learning_curves(run: Run) -> list[Picture]:
    """Plots over iterations: the training loss, and the training and validation score."""
    curves = [_loss(run)] if run.column("loss")[0] else []
    return [*curves, _score_curve(run)] if run.training_scores[0] or run.column("val")[0] else curves


def _loss(run: Run) -> Picture:
    x, y = run.column("loss")
    change = f"from {y[0]:.3g} to {y[-1]:.3g} over {plural(int(x[-1]), 'iteration')}"
    caption = f"Meta-loss on the query sets {change}. Each point is the mean since the last one."
    draw = lines([Series(x, y, "training loss", "s2")], "iteration", "training loss")
    return Picture("Training loss", draw, f"Line plot: training loss {change}.", [], caption)


def _score_curve(run: Run) -> Picture:
    metric = run.metric
    training = [
        Series(x, scaled(metric, y), f"training {metric.short}", "s2", 1, 1.2) for x, y in [run.training_scores] if x
    ]
    series = training + _validation(run)
    level = words.level(metric, run.config.tasks.get("ways"))
    legend = [(s.name, s.colour, s.dash) for s in series] + ([("chance", "muted", 2)] if level else [])
    caption = _score_caption(run, bool(training))
    draw = lines(series, "iteration", metric.label, end=metric.format.end, level=level)
    alt = f"Line plot: {' and '.join(s.name for s in series)} over iterations. {caption}"
    return Picture(capitalised(metric.name), draw, alt, legend, caption)


def _validation(run: Run) -> list[Series]:
    x, y = run.column("val")
    if not x:
        return []
    best = x[y.index(run.metric.best(y))]
    return [
        Series(x, scaled(run.metric, y), "validation, 95 % band", "s1", ends=band(run), marks=len(x) <= 12, ring=best)
    ]


def band(run: Run) -> list[tuple[float, float]] | None:
    """The ends of the validation scores' intervals, as they are plotted; None where some have none."""
    y, half = run.column("val")[1], run.column("val_interval")[1]
    low, high = (run.column(f"val_{end}")[1] for end in ("low", "high"))
    if not len(low) == len(high) == len(y) == len(half):  # runs of earlier versions have half widths alone
        low, high = ([value + sign * h for value, h in zip(y, half, strict=False)] for sign in (-1, 1))
    both = list(zip(scaled(run.metric, low), scaled(run.metric, high), strict=True))
    return both if len(half) == len(y) else None


def scaled(metric: Metric, values: Iterable[float]) -> list[float]:
    """Values as they are plotted: accuracies in percent."""
    return [metric.format.times * value for value in values]


def _score_caption(run: Run, training: bool) -> str:
    (x, y), metric = run.column("val"), run.metric
    tasks = plural(min(SHOWN_TASKS, run.config.meta_batch), "task")
    text = f"The training {metric.short} is of {tasks} a point, hence its jumps. " if training else ""
    if not x:
        return text + "There was no validation: train with validation tasks to see when to stop."
    best = metric.best(y)
    at = y.index(best)
    end = "still the last one: longer training may help" if at == len(y) - 1 else f"none was better up to {x[-1]:,.0f}"
    ringed = f"at iteration {x[at]:,.0f} (ringed, that theta was kept)"
    return f"{text}Best validation {metric.format.value(best)} {ringed}; {end}."


def steps_section(run: Run) -> Section | None:
    """The score over the number of inner steps at test; None where it was not measured."""
    if run.evaluation is None or not run.evaluation.steps:
        return None
    score, trained = run.evaluation.scores[0], run.config.fields.get("steps")
    rows = [
        (
            f"{one.steps}{' (as trained)' if one.steps == trained else ''}",
            score.metric.format.between(one.mean, one.low, one.high),
        )
        for one in run.evaluation.steps
    ]
    conclusion = "How far adaptation carries, with more or fewer inner steps at test than in training."
    caption = "The same in numbers, with 95 % intervals."
    return Section(
        conclusion, _steps_curve(run, run.evaluation.steps, score), caption, ("inner steps", score.metric.name), rows
    )


def _steps_curve(run: Run, points: list[StepsPoint], score: Score) -> Picture:
    trained, metric = run.config.fields.get("steps"), score.metric
    x = [point.steps for point in points]
    y, low, high = (scaled(metric, [getattr(point, name) for point in points]) for name in ("mean", "low", "high"))
    ring = trained if trained in x else None
    series = Series(x, y, f"{metric.name}, 95 % band", ends=list(zip(low, high, strict=True)), marks=True, ring=ring)
    level = words.level(metric, score.protocol.ways)
    draw = lines([series], "inner steps at test", metric.label, end=metric.format.end, level=level)
    legend = [(series.name, "s1", 0)] + ([("chance", "muted", 2)] if level else [])
    caption = _steps_caption(run, points, score)
    heading = f"{capitalised(metric.name)} against inner steps"
    return Picture(heading, draw, f"Line plot: {caption}", legend, caption)


def _steps_caption(run: Run, points: list[StepsPoint], score: Score) -> str:
    shown, best_mean = score.metric.format.value, score.metric.best(point.mean for point in points)
    best, first = next(point for point in points if point.mean == best_mean), points[0]
    trained = next((point for point in points if point.steps == run.config.fields.get("steps")), None)
    text = f"{shown(first.mean)} after {first.steps} inner steps, "
    text += "and no better with more" if best is first else f"best after {best.steps}: {shown(best.mean)}"
    if trained is not None and trained is not best:
        text += f"; {shown(trained.mean)} after the {trained.steps} of training (ringed)"
    alone = ", by the best checkpoint alone" if score.protocol.ensemble > 1 else ""
    return f"{text}. Over {plural(min(score.protocol.episodes, CURVE_EPISODES), 'test task')}{alone}."
