"""Paired differences of rows and baselines that were tested on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.reproduce.rows import Row
from quickstudy.evaluation.score import Score, compare

BARS = {"gradient": "maml", "metric": "protonet"}  # family: the learner that its others are compared with


def paired(
    rows: list[dict[str, Any]], baselines: list[dict[str, Any]], like_for_like: bool = False
) -> list[dict[str, Any]]:
    """Each row's scores minus each baseline's on the same episodes.

    `like_for_like`: only where both scores are transductive or neither is.
    """
    found = []
    for row in rows:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            for baseline in baselines:
                others = [Score.from_dict(plain) for test in baseline["scores"] for plain in test]
                alike = [o for o in others if same_episodes(score, o)]
                if like_for_like:
                    alike = [o for o in alike if o.protocol.transductive == score.protocol.transductive]
                for other in alike:
                    difference = compare(score, other, allow=("transductive",))
                    about = {"row": row["name"], "baseline": baseline["name"], "protocol": score.protocol.describe()}
                    against = other.protocol.describe()
                    found.append(about | {"against": against, "text": str(difference), "decided": difference.decided})
    return found


def same_episodes(a: Score, b: Score) -> bool:
    keys = ("tasks", "split", "ways", "shots", "queries", "episodes", "seed")
    return all(getattr(a.protocol, key) == getattr(b.protocol, key) for key in keys)


def differences(done: list[dict[str, Any]], baselines: Sequence[Row], family: str) -> list[dict[str, Any]]:
    """Paired differences to the baselines; in a family without baselines, to the learner named in BARS."""
    names = {row.name for row in baselines}
    if family == "foundation" or names:
        others, held_against = ([r for r in done if (r["name"] in names) == inside] for inside in (False, True))
        return paired(others, held_against, like_for_like=family != "foundation")
    bar = [row for row in done if row["settings"]["learner"] == BARS.get(family)]
    return paired([row for row in done if row not in bar], bar, like_for_like=True)
