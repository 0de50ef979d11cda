"""Numbers and nouns as people read them."""

from __future__ import annotations

from collections.abc import Sequence

BYTES = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))


def plural(n: float, noun: str, many: str = "") -> str:
    """A count with its noun: '1 example', '5 examples', '4,112 classes'."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def short(value: float) -> str:
    """A number with two digits, or rounded to a whole number: '0.24', '5.8', '8,001'."""
    return f"{value:.2g}" if abs(value) < 9.95 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A duration in words: '0.24 ms', '5.8 s', '2 min 5 s', '1 h 7 min'."""
    if seconds < 0.1:
        return f"{short(1000 * seconds)} ms"
    if seconds < 60:
        return f"{short(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """A share in percent: '20 %', '0.7 %'."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def percentage_points(share: float) -> str:
    """A difference of two shares in percentage points: '2.1 points', '−0.4 points'."""
    return f"{100 * share:.1f} points".replace("-", "−")


def size(count: float) -> str:
    """A number of bytes: '12 kB', '1.4 MB', '2.75 GB'."""
    # Three digits of 999.5 and more would round to 1e+03: such a number is one of the next unit.
    unit, each = next((one for one in BYTES if count < 999.5 * one[1]), BYTES[-1])
    return f"{count / each:.3g} {unit}"


def listed(names: Sequence[str]) -> str:
    """One or more names in a sentence: 'maml', 'maml and anil', 'maml, anil and boil'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def capitalised(text: str) -> str:
    """The text with a capital first letter, the others as they are: 'F1 of all classes', 'Accuracy'."""
    return text[:1].upper() + text[1:]
