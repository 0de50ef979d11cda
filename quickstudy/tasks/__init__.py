"""Task sources, from which episodes are sampled. Any object with `sample(n, generator) -> Episode` is one.

What else it may declare, with defaults: `quickstudy.tasks.source`.
"""

from quickstudy.tasks.arrays import ArrayTasks, from_arrays
from quickstudy.tasks.classes import ClassTasks, PooledTasks
from quickstudy.tasks.features import features
from quickstudy.tasks.images.augment import Augmentation
from quickstudy.tasks.images.cifar import cifar_fs, fc100
from quickstudy.tasks.images.folders import from_folder
from quickstudy.tasks.images.glyphs import glyphs
from quickstudy.tasks.images.omniglot import omniglot
from quickstudy.tasks.sinusoid import Sinusoids, sinusoid
from quickstudy.tasks.tabular.groups import GroupTasks
from quickstudy.tasks.tabular.ratings import from_ratings
from quickstudy.tasks.tabular.tables import from_table
from quickstudy.tasks.texts.text import from_text

__all__ = [
    "ArrayTasks",
    "Augmentation",
    "ClassTasks",
    "GroupTasks",
    "PooledTasks",
    "Sinusoids",
    "cifar_fs",
    "fc100",
    "features",
    "from_arrays",
    "from_folder",
    "from_ratings",
    "from_table",
    "from_text",
    "glyphs",
    "omniglot",
    "sinusoid",
]
