"""How a learner is mapped over tasks: the engines, how one is chosen, and how it is checked."""

from quickstudy.engine.engines import ENGINES, PLAIN, PROGRAMS, TOGETHER
from quickstudy.engine.mapping import map_learner, map_tasks, meta_gradient, without_program

__all__ = ["ENGINES", "PLAIN", "PROGRAMS", "TOGETHER", "map_learner", "map_tasks", "meta_gradient", "without_program"]
