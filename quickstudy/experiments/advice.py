"""Turns a comparison of learners into advice on which one to choose, depending on what matters to the user.

All answers follow from the standings of `ranking`: who may be the best, and who is as good. Where there is one training
of each learner they say that they hold for these trainings alone: the next training may come out otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from quickstudy.base.words import listed, size
from quickstudy.errors import ProtocolError
from quickstudy.evaluation.score import Score
from quickstudy.experiments.comparison import Entry, LearnerComparison
from quickstudy.experiments.ranking import Standing, beaten, standings

ALIKE = 1.25  # a time to learn a task up to this many times the smallest is about as fast: measurements vary that much
BELIEVED = 0.05  # probabilities or intervals that are off by more than 5 points are not to be believed
ALONE = " This holds for these trainings alone."


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
    alike: float = 1.0  # amounts up to this many times the smallest are about the same


SECONDS = Cost(
    lambda entry: entry.adapt_seconds, lambda entry: f"{1000 * entry.adapt_seconds:.3g} ms to learn a task", ALIKE
)
BYTES = Cost(lambda entry: float(entry.bytes or 0), lambda entry: f"{size(entry.bytes or 0)} as a file")


def advise(comparison: LearnerComparison) -> list[Advice]:
    """For each of the questions that users ask, the entry to choose and why."""
    ranked = standings(comparison)
    alone = ALONE if comparison.alone else ""
    return [
        _accurate(ranked, alone),
        _pays(comparison, ranked),
        _cheapest("Which learns a new task fastest?", ranked, ranked, SECONDS),
        _cheapest("Which is smallest?", ranked, [one for one in ranked if one.entry.bytes is not None], BYTES),
        _calibrated(ranked),
        _unlabelled(comparison),
    ]


def as_good(comparison: LearnerComparison) -> list[Entry]:
    """The best entry, and those that are as good (see `ranking`)."""
    return [one.entry for one in standings(comparison) if one.as_good]


def more_trainings(comparison: LearnerComparison) -> str:
    """What more trainings would show and cost, in a sentence; empty where the verdicts leave nothing open."""
    seeds = sorted({trial.seed for entry in comparison.entries for trial in entry.trials if entry.trained})
    open_ones = sum(one.may_be_best for one in standings(comparison)) > 1
    if not seeds or not (open_ones or comparison.alone):
        return ""
    more = [*seeds, *range(seeds[-1] + 1, seeds[-1] + 3)]
    learners = sum(entry.trained for entry in comparison.entries)
    minutes = 2 * learners * float(comparison.settings["minutes"])
    aim = "tell whether the next training comes out alike" if comparison.alone else "tell more of them apart"
    return (
        f"Two more trainings of each learner may {aim}: --seeds {' '.join(map(str, more))} --resume, "
        f"{minutes:.3g} more minutes of training, and the tests."
    )


def _accurate(ranked: Sequence[Standing], alone: str) -> Advice:
    best, *others = ranked
    ties = [one.entry.name for one in others if one.may_be_best and one.as_good]
    vague = [one.entry.name for one in others if one.may_be_best and not one.as_good]
    tied = f"; {listed(ties)} {_are(ties)} not told apart from it" if ties else ""
    far = f"; {listed(vague)} {_are(vague)} behind, but too uncertain to be ruled out" if vague else ""
    return Advice("Which is most accurate?", best.entry.name, f"{best.entry.score.in_words()}{tied}{far}.{alone}")


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _pays(comparison: LearnerComparison, ranked: Sequence[Standing]) -> Advice:
    """Yes where no baseline may be the best, no where no meta-learner may."""
    question = "Does meta-learning pay?"
    learners, baselines = ([one for one in ranked if one.entry.meta == meta] for meta in (True, False))
    if not learners or not baselines:
        return Advice(question, "", f"There is no {'meta-learner' if baselines else 'baseline'} here.")
    yes, no = ("In these trainings, yes", "In these trainings, no") if comparison.alone else ("Yes", "No")
    ahead = {one.entry.name: one.entry for one in ranked}
    best, bar = learners[0].entry, baselines[0].entry
    if not any(one.may_be_best for one in baselines):
        best = ahead[baselines[0].beaten_by[0]]
        return Advice(question, best.name, _against(comparison, yes, best, bar))
    if not any(one.may_be_best for one in learners):
        bar = ahead[learners[0].beaten_by[0]]
        return Advice(question, bar.name, _against(comparison, no, best, bar))
    told = _against(comparison, "Not shown", best, bar)
    if baselines[0].as_good:
        return Advice(question, bar.name, f"{told} Take the simpler one.")
    rival = next(one.entry.name for one in baselines if one.may_be_best)
    return Advice(question, best.name, f"{told} {rival} is behind, but too uncertain to be ruled out.")


def _against(comparison: LearnerComparison, verdict: str, best: Entry, bar: Entry) -> str:
    """The verdict on a meta-learner and a baseline, with their scores, their difference and what it holds for."""
    difference = comparison.difference(best, bar)
    others = len(comparison.entries) - 1
    adjusted = f"; the verdict allows for {others} comparisons" if others > 1 else ""
    return (
        f"{verdict}: {best.name} {best.score.in_words()}, the baseline {bar.name} {bar.score.in_words()}: "
        f"{difference.signed()} (paired, 95 % CI, {difference.over}{adjusted})."
    )


def _cheapest(question: str, ranked: Sequence[Standing], able: Sequence[Standing], cost: Cost) -> Advice:
    """The cheapest of the entries as good as the best. Beside it one that costs less and is not as good: if that may be
    the best, or costs less than half.

    `able` are the entries that have such a cost, best first.
    """
    good = [one.entry for one in able if one.as_good]
    if not good:
        return Advice(question, "", "Those that are as good as the best have no file.")
    chosen = min(good, key=cost.amount)
    least = cost.amount(chosen)
    ties = [one.name for one in good if one is not chosen and cost.amount(one) <= cost.alike * least]
    alike = f"; {listed(ties)} {_are(ties)} about the same" if ties else ""
    cheaper = [one for one in able if not one.as_good and cost.amount(one.entry) < least]
    cheaper = [one for one in cheaper if one.may_be_best or 2 * cost.amount(one.entry) < least]
    price = f" {_price(min(cheaper, key=lambda one: cost.amount(one.entry)), cost)}" if cheaper else ""
    same = "the best" if chosen is ranked[0].entry else "as good as the best"
    return Advice(question, chosen.name, f"{cost.in_words(chosen)}, {same}{alike}.{price}")


def _price(one: Standing, cost: Cost) -> str:
    vague = ", which is not certain" if one.may_be_best or not one.loss.decided else ""
    return f"{one.entry.name} takes less, {cost.in_words(one.entry)}, and is {one.loss.in_words()} worse{vague}."


def _calibrated(ranked: Sequence[Standing]) -> Advice:
    """The least miscalibrated of the entries as good as the best, if it is off by at most BELIEVED."""
    question = "Whose probabilities can be believed?"
    off = {one.entry.name: error for one in ranked if (error := one.entry.calibration_error) is not None}
    if not off:
        return Advice(question, "", "None here tells how sure it is of a value; cnp and anp do.")
    classes = bool(ranked[0].entry.score.protocol.ways)
    good = [one.entry.name for one in ranked if one.as_good and one.entry.name in off]
    nearest = min(good, key=off.__getitem__, default="")
    if good and off[nearest] <= BELIEVED:
        best = ranked[0].entry.name
        others = f", of the best {100 * off[best]:.1f}" if nearest != best and best in off else ""
        return Advice(question, nearest, f"{_off(off[nearest], classes)}{others}.")
    why = f"{nearest} comes nearest: {_lowered(_off(off[nearest], classes))}" if good else "they do not tell"
    believed = [one for one in ranked if not one.as_good and off.get(one.entry.name, 1.0) <= BELIEVED]
    worse = [f" {one.entry.name} can be, but is {one.loss.in_words()} worse." for one in believed[:1]]
    mend = " `qs.recalibrated` may mend that on validation tasks." if good and not classes else ""
    return Advice(question, "", f"Not of those that are as good as the best: {why}.{''.join(worse) or mend}")


def _off(error: float, classes: bool) -> str:
    points = f"{100 * error:.1f} points"
    if not classes:
        return f"Its 90 % intervals miss 90 % by {points}"
    return f"How sure it is and how often it is right are off by {points} on average"


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def _unlabelled(comparison: LearnerComparison) -> Advice:
    question = "Which answers before a new task has any label?"
    scores = {entry.name: entry.unlabelled for entry in comparison.entries if entry.unlabelled is not None}
    if not scores:
        ways = comparison.entries[0].score.protocol.ways
        why = "The classes of a task are new: only examples can say what they are" if ways else "Each needs examples"
        return Advice(question, "", f"{why}.")
    sign = comparison.entries[0].score.metric.sign
    names = sorted(scores, key=lambda name: (-sign * scores[name].mean, name))
    name, score = names[0], scores[names[0]]
    ties = [names[i] for i in _not_beaten([scores[name] for name in names]) if i > 0]
    tied = f"; {listed(ties)} {_are(ties)} not told apart from it" if ties else ""
    with_all = comparison[name].score.in_words()
    return Advice(question, name, f"{score.in_words()} with no example, {with_all} with all of them{tied}.")


def _not_beaten(scores: Sequence[Score]) -> list[int]:
    """The places of the scores that may be the best; none where they were measured under different protocols."""
    try:
        return [i for i, better in enumerate(beaten(scores)) if not better]
    except ProtocolError:
        return []
