"""The result of a meta-gradient check, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

BAD = {
    "wrong": "not the derivative of the meta-loss; if that is by design, the learner's class says approximate = True",
    "cut off": "the meta-loss depends on it, but no gradient arrives: look for detach(), .data, .item() or no_grad()",
    "not finite": "NaN or infinity",
    "unsettled": "cannot be judged: the differences do not settle as their step shrinks, as at jumps, at kinks "
    "everywhere, or with float32 inside the model",
}
REMARKS = {
    "kink": "right nearby, but theta itself sits at a kink (ReLU, max-pooling), and one of several derivatives is used",
    "unused": "the meta-loss does not depend on it",
    "handed in": "the learner gives it a gradient of its own, by design",
    "zero": "the meta-gradient is zero: what follows cancels it, as a normalisation does a bias, or is zero or dead",
}


class EntryCheck(NamedTuple):
    """One entry of theta. `verdict` is "right", "approximate", or a word of BAD or REMARKS."""

    name: str
    shape: tuple[int, ...]
    norm: float  # the norm of its meta-gradient g
    difference: float  # |f - g| / max(|f|, |g|), f the derivative of the meta-loss; NaN if it was not compared
    verdict: str


class EngineCheck(NamedTuple):
    """Whether an engine can map the learner over tasks, and a remark or the reason why not."""

    name: str
    works: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {'yes' if self.works else 'no'}{f', {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class GradientCheck:
    """What `check_meta_gradient` found; print it for the verdict as text.

    `ok`: nothing is wrong. A meta-gradient that is approximate by design also counts as ok.
    """

    learner: str
    loss: float  # the meta-loss at theta, in float64
    entries: tuple[EntryCheck, ...]
    engines: tuple[EngineCheck, ...]
    approximate: bool  # whether the meta-gradient is, by design, not the derivative of the meta-loss
    difference: float  # |f - g| / |f| over all of theta
    cosine: float  # the cosine between f and g
    problems: tuple[str, ...]  # other problems, as text

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not any(entry.verdict in BAD for entry in self.entries)

    def named(self, *verdicts: str) -> list[str]:
        """The names of the entries of theta with one of these verdicts."""
        return [entry.name for entry in self.entries if entry.verdict in verdicts]

    def __str__(self) -> str:
        remarks = [f"{word}: {self._listed(word)} ({why})" for word, why in (BAD | REMARKS).items() if self.named(word)]
        return "\n  ".join([self._headline(), *remarks, *self.problems, *(f"engine {e}" for e in self.engines)])

    def _listed(self, verdict: str) -> str:
        if verdict != "wrong":
            return ", ".join(self.named(verdict))
        return ", ".join(f"{e.name} by {_percent(e.difference)}" for e in self.entries if e.verdict == verdict)

    def _headline(self) -> str:
        name, count = f"the meta-gradient of {self.learner}", len(self.entries)
        if self.named(*BAD):
            return f"NOT OK: {name} fails in {len(self.named(*BAD))} of {count} entries of theta"
        if not self.ok:
            return f"NOT OK: {name} is right in float64, but not at the learner's own precision"
        if not self.entries:
            return f"ok: {self.learner} learns nothing across tasks, so there is no meta-gradient"
        if self.approximate:
            size = f"{_percent(self.difference)} (cosine {self.cosine:.3f})"
            return f"ok: {name} is an approximation: differs by {size} from the exact derivative"
        right = [entry.difference for entry in self.entries if entry.verdict == "right"]
        worst = f", to {max(right):.0e} or better" if right else ""
        return f"ok: {name} is the derivative of its meta-loss in {len(right)} of {count} entries of theta{worst}"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 2}{'f' if share >= 0.1 else 'g'}} %"
