"""Turns a comparison of learners into advice on which one to choose, depending on what matters to the user.

A learner is *as good* as the best if it loses at most one point of accuracy (for errors: a twentieth of the error). If
the paired difference is not decided, it may lose up to three times that. There is a limit because a learner that is far
off is not decided either if its scores vary wildly. The advice names the cheapest of the learners that are as good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from quickstudy.base.words import listed, size
from quickstudy.evaluation.score import Difference
from quickstudy.experiments.comparison import Entry, LearnerComparison

POINT = 0.01  # what a learner that is as good may lose, as a share of the largest possible score
TWENTIETH = 0.05  # the same as a share of the best score, where scores have no largest one
UNDECIDED = 3.0  # times that, where the difference is not decided
ALIKE = 1.25  # costs up to this many times the smallest count as equal, because measurements vary that much


class Advice(NamedTuple):
    """The answer to one question."""

    question: str
    choice: str  # the name of an entry; empty where none will do
    reason: str

    def __str__(self) -> str:
        return f"{self.question} {self.choice or 'None'}. {self.reason}"


class Cost(NamedTuple):
    """What an entry costs its user, as a number and in words."""

    amount: Callable[[Entry], float]
    in_words: Callable[[Entry], str]


SECONDS = Cost(lambda entry: entry.adapt_seconds, lambda entry: f"{1000 * entry.adapt_seconds:.3g} ms to learn a task")
BYTES = Cost(lambda entry: float(entry.bytes or 0), lambda entry: f"{size(entry.bytes or 0)} as a file")


def advise(comparison: LearnerComparison) -> list[Advice]:
    """For each of the questions that users ask, the entry to choose and why."""
    questions = (_accurate, _pays, _fast, _small, _calibrated, _unlabelled)
    return [answer(comparison) for answer in questions]


def worse_by(comparison: LearnerComparison, entry: Entry) -> Difference:
    """How far this entry is behind the best one, positive where it is worse."""
    best = comparison.entries[0]
    pair = (best, entry) if best.score.metric.higher_is_better else (entry, best)
    return comparison.difference(*pair)


def as_good(comparison: LearnerComparison) -> list[Entry]:
    """The best entry, and those that are as good (see the top of this file)."""
    best, *others = comparison.entries
    largest = best.score.metric.format.largest
    allowed = TWENTIETH * abs(best.score.mean) if largest is None else POINT * largest
    return [best, *(entry for entry in others if _close(worse_by(comparison, entry), allowed))]


def _close(difference: Difference, allowed: float) -> bool:
    return difference.mean <= (allowed if difference.decided else UNDECIDED * allowed)


def _accurate(comparison: LearnerComparison) -> Advice:
    best, *others = comparison.entries
    good = as_good(comparison)
    ties = [entry.name for entry in others if entry in good and not worse_by(comparison, entry).decided]
    tied = f"; {listed(ties)} {'are' if len(ties) > 1 else 'is'} not told apart from it" if ties else ""
    return Advice("Which is most accurate?", best.name, f"{best.score.in_words()}{tied}.")


def _pays(comparison: LearnerComparison) -> Advice:
    question = "Does meta-learning pay?"
    learners, baselines = ([e for e in comparison.entries if e.meta == meta] for meta in (True, False))
    if not learners or not baselines:
        return Advice(question, "", f"There is no {'meta-learner' if baselines else 'baseline'} here.")
    best, bar = learners[0], baselines[0]
    difference = comparison.difference(best, bar)
    scores = f"{best.name} {best.score.in_words()}, the best baseline {bar.name} {bar.score.in_words()}"
    if not difference.decided:
        return Advice(question, bar.name, f"Not shown: {scores}: {difference}. Take the simpler one.")
    if best.score.metric.sign * difference.mean > 0:
        return Advice(question, best.name, f"Yes: {scores}: {difference}.")
    return Advice(question, bar.name, f"No: {scores}: {difference}.")


def _fast(comparison: LearnerComparison) -> Advice:
    return _cheapest(comparison, "Which learns a new task fastest?", comparison.entries, SECONDS)


def _small(comparison: LearnerComparison) -> Advice:
    filed = [entry for entry in comparison.entries if entry.bytes is not None]
    return _cheapest(comparison, "Which is smallest?", filed, BYTES)


def _cheapest(comparison: LearnerComparison, question: str, able: Sequence[Entry], cost: Cost) -> Advice:
    """The cheapest of the entries as good as the best, and a worse one if that costs less than half as much.

    `able` are the entries that have such a cost.
    """
    as_good_ones = as_good(comparison)
    good = [entry for entry in able if entry in as_good_ones]
    if not good:
        return Advice(question, "", "Those that are as good as the best have no file.")
    least = min(map(cost.amount, good))
    chosen = next(entry for entry in good if cost.amount(entry) <= ALIKE * least)  # good ones come best first
    cheaper = [e for e in able if e not in good and 2 * cost.amount(e) < cost.amount(chosen)]
    price = f" {_price(comparison, min(cheaper, key=cost.amount), cost)}" if cheaper else ""
    return Advice(question, chosen.name, f"{cost.in_words(chosen)}, as good as the best.{price}")


def _price(comparison: LearnerComparison, entry: Entry, cost: Cost) -> str:
    lost = worse_by(comparison, entry).in_words()
    return f"{entry.name} takes less, {cost.in_words(entry)}, and is {lost} worse."


def _calibrated(comparison: LearnerComparison) -> Advice:
    question = "Whose probabilities can be believed?"
    errors = {entry.name: entry.calibration_error for entry in comparison.entries}
    able = [entry for entry in comparison.entries if errors[entry.name] is not None]
    good = [entry for entry in able if entry in as_good(comparison)] or able
    if not good:
        return Advice(question, "", "None here tells how sure it is of a value; cnp and anp do.")
    least = {name: error for name, error in errors.items() if error is not None}
    chosen, best = min(good, key=lambda entry: least[entry.name]), comparison.entries[0]
    off = f"{100 * least[chosen.name]:.1f} points"
    if not best.score.protocol.ways:
        return Advice(question, chosen.name, f"Its 90 % intervals miss 90 % by {off}.")
    others = f", of the best {100 * least[best.name]:.1f}" if chosen is not best and best.name in least else ""
    return Advice(
        question, chosen.name, f"How sure it is and how often it is right are off by {off} on average{others}."
    )


def _unlabelled(comparison: LearnerComparison) -> Advice:
    question = "Which answers before a new task has any label?"
    scores = {entry.name: entry.unlabelled for entry in comparison.entries if entry.unlabelled is not None}
    if not scores:
        ways = comparison.entries[0].score.protocol.ways
        why = "The classes of a task are new: only examples can say what they are" if ways else "Each needs examples"
        return Advice(question, "", f"{why}.")
    best = comparison.entries[0].score.metric.best(score.mean for score in scores.values())
    name, score = next((name, score) for name, score in scores.items() if score.mean == best)
    with_all = comparison[name].score.in_words()
    return Advice(question, name, f"{score.in_words()} with no example, {with_all} with all of them.")
