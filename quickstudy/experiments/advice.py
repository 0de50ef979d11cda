"""Turns a comparison of learners into advice on which one to choose, depending on what matters to the user.

A learner is *as good* as the best if it loses at most one point of accuracy (for errors: a twentieth of the error). If
the paired difference is not decided, it may lose up to three times that. There is a limit because a learner that is far
off is not decided either if its scores vary wildly. The advice names the cheapest of the learners that are as good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from quickstudy.evaluation.score import Difference, in_words
from quickstudy.experiments.comparison import Entry, LearnerComparison, size

POINT, TWENTIETH = 0.01, 0.05  # what a learner that is as good may lose: in accuracy, and as a share of the error
UNDECIDED = 3.0  # times that, where the difference is not decided
ALIKE = 1.25  # costs up to this many times the smallest count as equal, because measurements vary that much


class Advice(NamedTuple):
    """The answer to one question."""

    question: str
    choice: str  # the name of an entry; empty where none will do
    reason: str

    def __str__(self) -> str:
        return f"{self.question} {self.choice or 'None'}. {self.reason}"


def advise(found: LearnerComparison) -> list[Advice]:
    """For each of the questions that users ask, the entry to choose and why."""
    asked = (_accurate, _pays, _fast, _small, _honest, _unlabelled)
    return [ask(found) for ask in asked]


def worse_by(found: LearnerComparison, entry: Entry) -> Difference:
    """The best entry minus this one, positive where it is worse."""
    best = found.entries[0]
    if best.score.protocol.metric == "accuracy":
        return found.difference(best, entry)
    return found.difference(entry, best)


def as_good(found: LearnerComparison) -> list[Entry]:
    """The best entry, and those that are as good (see the top of this file)."""
    best, *others = found.entries
    allowed = POINT if best.score.protocol.metric == "accuracy" else TWENTIETH * best.score.mean
    return [best, *(entry for entry in others if _close(worse_by(found, entry), allowed))]


def _close(difference: Difference, allowed: float) -> bool:
    return difference.mean <= (allowed if difference.decided else UNDECIDED * allowed)


def _accurate(found: LearnerComparison) -> Advice:
    best, *others = found.entries
    ties = [entry.name for entry in others if entry in as_good(found) and not worse_by(found, entry).decided]
    told = f"; {_listed(ties)} {'are' if len(ties) > 1 else 'is'} not told apart from it" if ties else ""
    return Advice("Which is most accurate?", best.name, f"{_measured(best)}{told}.")


def _pays(found: LearnerComparison) -> Advice:
    question = "Does meta-learning pay?"
    learners, baselines = ([e for e in found.entries if e.meta == meta] for meta in (True, False))
    if not learners or not baselines:
        return Advice(question, "", f"There is no {'meta-learner' if baselines else 'baseline'} here.")
    best, bar = learners[0], baselines[0]
    difference = found.difference(best, bar)
    ahead = (difference.mean > 0) == (best.score.protocol.metric == "accuracy")
    against = f"{best.name} {_measured(best)}, the best baseline {bar.name} {_measured(bar)}: {difference}"
    if not difference.decided:
        return Advice(question, bar.name, f"Not shown: {against}. Take the simpler one.")
    if ahead:
        return Advice(question, best.name, f"Yes: {against}.")
    return Advice(question, bar.name, f"No: {against}.")


def _fast(found: LearnerComparison) -> Advice:
    def told(entry: Entry) -> str:
        return f"{1000 * entry.adapt_seconds:.3g} ms to learn a task"

    return _cheapest(found, "Which learns a new task fastest?", as_good(found), lambda e: e.adapt_seconds, told)


def _small(found: LearnerComparison) -> Advice:
    good = [entry for entry in as_good(found) if entry.bytes is not None]
    return _cheapest(
        found, "Which is smallest?", good, lambda e: float(e.bytes or 0), lambda e: f"{size(e.bytes or 0)} as a file"
    )


def _cheapest(
    found: LearnerComparison,
    question: str,
    good: Sequence[Entry],
    cost: Callable[[Entry], float],
    told: Callable[[Entry], str],
) -> Advice:
    """The cheapest of the entries as good as the best, and a worse one if that costs less than half as much."""
    if not good:
        return Advice(question, "", "Those that are as good as the best have no file.")
    cheapest = min(map(cost, good))
    chosen = next(entry for entry in good if cost(entry) <= ALIKE * cheapest)  # good ones come best first
    cheaper = [e for e in found.entries if e not in good and e.bytes is not None and 2 * cost(e) < cost(chosen)]
    price = f" {_price(found, min(cheaper, key=cost), told)}" if cheaper else ""
    return Advice(question, chosen.name, f"{told(chosen)}, as good as the best.{price}")


def _price(found: LearnerComparison, entry: Entry, told: Callable[[Entry], str]) -> str:
    lost = worse_by(found, entry)
    return (
        f"{entry.name} takes less, {told(entry)}, and is {in_words(lost.mean, lost.interval, lost.metric, True)} worse."
    )


def _honest(found: LearnerComparison) -> Advice:
    question = "Whose probabilities can be believed?"
    accurate = found.entries[0].score.protocol.metric == "accuracy"
    able = [entry for entry in found.entries if entry.dishonest is not None]
    good = [entry for entry in able if entry in as_good(found)] or able
    if not good:
        return Advice(question, "", "None here tells how sure it is of a value; cnp and anp do.")
    chosen = min(good, key=_dishonesty)
    if not accurate:
        return Advice(question, chosen.name, f"Its 90 % intervals miss 90 % by {100 * _dishonesty(chosen):.1f} points.")
    others = f", of the best {100 * _dishonesty(found.entries[0]):.1f}" if chosen is not found.entries[0] else ""
    off = f"off by {100 * _dishonesty(chosen):.1f} points on average{others}"
    return Advice(question, chosen.name, f"How sure it is and how often it is right are {off}.")


def _dishonesty(entry: Entry) -> float:
    assert entry.dishonest is not None
    return entry.dishonest


def _unlabelled(found: LearnerComparison) -> Advice:
    question = "Which answers before a new task has any label?"
    able = [entry for entry in found.entries if entry.unlabelled is not None]
    if not able:
        ways = found.entries[0].score.protocol.ways
        why = "The classes of a task are new: only examples can say what they are" if ways else "Each needs examples"
        return Advice(question, "", f"{why}.")
    rewards = found.entries[0].score.protocol.metric == "accuracy"
    score = lambda entry: entry.unlabelled.mean if entry.unlabelled else 0.0  # noqa: E731
    chosen = (max if rewards else min)(able, key=score)
    assert chosen.unlabelled is not None
    mean = in_words(chosen.unlabelled.mean, chosen.unlabelled.interval, chosen.unlabelled.protocol.metric)
    return Advice(question, chosen.name, f"{mean} with no example, {_measured(chosen)} with all of them.")


def _measured(entry: Entry) -> str:
    return in_words(entry.score.mean, entry.score.interval, entry.score.protocol.metric)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
