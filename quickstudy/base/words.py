"""Numbers and nouns as people read them."""

from __future__ import annotations

import math


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


def number(mean: float, metric: str) -> str:
    """The mean alone: '97.4 %', '0.152'."""
    return f"{100 * mean:.1f} %" if metric == "accuracy" else f"{mean:.3g}"


def half(interval: float, metric: str) -> str:
    """The half width alone: '± 0.3'."""
    if math.isinf(interval):
        return "(no interval)"
    return f"± {100 * interval:.1f}" if metric == "accuracy" else f"± {interval:.2g}"


def measured(mean: float, interval: float, metric: str) -> str:
    """Mean and interval: '97.4 % ± 0.3'."""
    return f"{number(mean, metric)} {half(interval, metric)}"


def percent(share: float) -> str:
    """A share in percent: '20 %', '0.7 %'."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
