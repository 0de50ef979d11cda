"""How good is it? Scores on unseen tasks, with interval, protocol and controls; paired comparison."""

from quickstudy.evaluation.score import Difference, Score, compare
from quickstudy.evaluation.scoring import episode_score, evaluate

__all__ = ["Difference", "Score", "compare", "episode_score", "evaluate"]
