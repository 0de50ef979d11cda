"""Task sources: what can be sampled. Any object with `sample(n, generator) -> Episode` is one."""

from quickstudy.tasks.arrays import ArrayTasks, from_arrays
from quickstudy.tasks.classes import ClassTasks, PooledTasks
from quickstudy.tasks.features import features
from quickstudy.tasks.glyphs import glyphs
from quickstudy.tasks.images import from_folder
from quickstudy.tasks.omniglot import omniglot
from quickstudy.tasks.sinusoid import Sinusoids, sinusoid

__all__ = [
    "ArrayTasks",
    "ClassTasks",
    "PooledTasks",
    "Sinusoids",
    "features",
    "from_arrays",
    "from_folder",
    "glyphs",
    "omniglot",
    "sinusoid",
]
