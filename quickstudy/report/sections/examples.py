"""Shows a few test episodes with the learner's answers: as pictures, as fitted curves, or as a small table."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quickstudy.base.figures import drawn
from quickstudy.experiments.run import Example
from quickstudy.report.thumbnails import SHARP, fit, fit_series, is_drawing, is_image, thumbnail

CLASSES = 10  # at most so many rows for one episode
SHOWN = 5  # at most so many support examples, and as many queries, of one class
ROWS = 8  # rows in a table of answers
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def episodes(examples: list[Example], steps: int | None) -> list[dict[str, Any]]:
    """What the template shows of each episode; its 'kind' is 'pictures', 'fit' or 'table'.

    `steps` is the number of inner steps before the answers, None for learners without inner steps.
    """
    limits, tested = _limits(examples), "adapted" if steps is None else str(steps)
    common: dict[str, Any] = {"worded": any(example.described.get("query") for example in examples), "shown": []}
    return [
        common | _episode(example) | {"number": i + 1} | _drawn(example, limits, tested)
        for i, example in enumerate(examples)
    ]


def letter(label: int, ways: int) -> str:
    """The name of a class within an episode: A, B, ..., or 1, 2, ... where there are more classes than letters."""
    return LETTERS[label] if ways <= len(LETTERS) else str(label + 1)


def _episode(example: Example) -> dict[str, Any]:
    """The episode's score in words, its number of queries, and its task's name."""
    named = {"task": str(example.described.get("task", ""))}
    if example.query_y.is_floating_point():
        error = float(((example.output - example.query_y) ** 2).mean())
        scored = example.described.get("score", f"mean squared error {error:.3g}")  # earlier versions kept no score
        return {"summary": str(scored), "total": len(example.query_y)} | named
    right = int((example.output.argmax(1) == example.query_y).sum())
    return {"summary": f"{right} of {len(example.query_y)} right", "total": len(example.query_y)} | named


def _name(example: Example, label: int) -> str:
    """The real name of the class; a letter where it is not known."""
    classes = example.described.get("classes", ())
    return str(classes[label]) if label < len(classes) else letter(label, example.output.shape[1])


def _drawn(example: Example, limits: tuple[float, float], tested: str) -> dict[str, Any]:
    real = example.query_y.is_floating_point()
    if real and example.grid is not None and example.curves:
        draw = fit(example, limits, tested)
        return {"kind": "fit", "draw": draw, "svg": drawn(draw), "legend": _fit_legend(example, tested)}
    if not real and is_image(example.query_x):
        looks = {"drawing": is_drawing(example.support_x), "photos": max(example.query_x.shape[2:]) > SHARP}
        return {"kind": "pictures", "rows": _picture_rows(example)} | looks
    table = {"kind": "table", "real": real, "rows": _value_rows(example) if real else _label_rows(example)}
    return table | {"shown": [] if real else _shown_texts(example)}


def _limits(examples: list[Example]) -> tuple[float, float]:
    """One range of the y axis for all fits, so that they can be compared."""
    fits = [e for e in examples if e.grid is not None]
    values = [v.reshape(len(v), -1)[:, 0] for e in fits for v in (e.support_y, e.query_y, *e.curves.values())]
    low = min((float(v.min()) for v in values), default=0.0)
    high = max((float(v.max()) for v in values), default=1.0)
    room = 0.06 * max(high - low, 1e-6)
    return low - room, high + room


def _fit_legend(example: Example, tested: str) -> list[tuple[str, str, int]]:
    def name(steps: str) -> str:
        words = f"after {steps} inner step{'s' * (steps != '1')}" if steps.isdigit() else steps
        return f"{words}, as tested" if steps == tested else "not adapted" if steps == "0" else words

    return [(name(s.name), s.colour, s.dash) for s in fit_series(example, tested)]


# --- pictures --------------------------------------------------------------------------------------------------------


def _picture_rows(example: Example) -> list[dict[str, Any]]:
    """One row per class: its support pictures, and its queries with the learner's answers."""
    ways = example.output.shape[1]
    draw = _painter(example)
    answers = example.output.argmax(1)
    rows = []
    for label in sorted(set(example.support_y.tolist()))[:CLASSES]:
        queries = (example.query_y == label).nonzero()[:SHOWN, 0].tolist()
        rows.append(
            {
                "name": letter(label, ways),
                "called": _name(example, label),
                "support": [draw(x) for x in example.support_x[example.support_y == label][:SHOWN]],
                "queries": [
                    {
                        "src": draw(example.query_x[i]),
                        "answer": letter(int(answers[i]), ways),
                        "right": answers[i] == label,
                    }
                    for i in queries
                ],
            }
        )
    return rows


def _painter(example: Example) -> Any:
    """Draws thumbnails of an episode on one scale: [0, 1], widened to the range of the episode's values."""
    low = min(0.0, float(example.support_x.min()), float(example.query_x.min()))
    high = max(1.0, float(example.support_x.max()), float(example.query_x.max()))
    drawing = is_drawing(example.support_x)
    return lambda image: thumbnail(image, low, high, drawing)


# --- tables ----------------------------------------------------------------------------------------------------------


def _label_rows(example: Example) -> list[dict[str, Any]]:
    """A few queries spread over the classes: the true class, the answer, and the answer's probability."""
    probabilities, answers = example.output.double().softmax(1).max(1)
    rows, texts = [], example.described.get("query")
    for i in _spread(len(answers)):
        truth, answer = int(example.query_y[i]), int(answers[i])
        names = {"truth": _name(example, truth), "answer": _name(example, answer), "right": truth == answer}
        sure = f"{100 * float(probabilities[i]):.0f} %"
        rows.append({"number": texts[i] if texts else i + 1, **names, "extra": sure})
    return rows


def _shown_texts(example: Example) -> list[tuple[str, list[str]]]:
    """Each class and the first of its support texts; empty where examples are not texts."""
    texts = example.described.get("support")
    if not texts:
        return []
    labels = example.support_y.tolist()
    return [
        (_name(example, label), [t for t, y in zip(texts, labels, strict=True) if y == label][:SHOWN])
        for label in sorted(set(labels))[:CLASSES]
    ]


def _value_rows(example: Example) -> list[dict[str, Any]]:
    rows, texts = [], example.described.get("query")
    for i in _spread(len(example.output)):
        truth, answer = example.query_y[i].flatten(), example.output[i].flatten()
        miss = f"{float((answer - truth).double().norm()):.3g}"
        shown = {"truth": _vector(truth), "answer": _vector(answer), "extra": miss}
        rows.append({"number": texts[i] if texts else i + 1} | shown)
    return rows


def _spread(n: int) -> list[int]:
    """At most ROWS numbers below n, evenly spaced, because queries are ordered by class."""
    return sorted({round(i * (n - 1) / max(min(n, ROWS) - 1, 1)) for i in range(min(n, ROWS))})


def _vector(values: Tensor) -> str:
    few = ", ".join(f"{v:.3g}" for v in values[:4].tolist())
    return few + (", …" if len(values) > 4 else "")
