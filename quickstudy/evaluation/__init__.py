"""How good is it? Scores on unseen tasks, with interval, protocol and controls; paired comparison."""

from quickstudy.evaluation.score import Difference, Score, by_task, compare, half_width, in_words, over_what
from quickstudy.evaluation.scoring import (
    BLOCK,
    episode_score,
    evaluate,
    protocol_of,
    sample_block,
    sample_blocks,
    tasks_of,
)

__all__ = [
    "BLOCK",
    "Difference",
    "Score",
    "by_task",
    "compare",
    "episode_score",
    "evaluate",
    "half_width",
    "in_words",
    "over_what",
    "protocol_of",
    "sample_block",
    "sample_blocks",
    "tasks_of",
]
