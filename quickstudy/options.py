"""The options of each command, as dataclasses: the comment behind a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg


def number(default: str) -> Any:
    """A number that may be left out, with words for what happens then."""
    return arg(metavar="NUMBER", help_behavior_hint=f"(default: {default})")


def word(default: str) -> Any:
    """A word or path that may be left out, with words for what happens then."""
    return arg(metavar="WORD", help_behavior_hint=f"(default: {default})")


def fitting(what: str) -> Any:
    """A choice that may be left out."""
    return arg(metavar="{stride,pool}", help_behavior_hint=f"(default: what suits {what})")


kinds = arg(metavar="{number,class}", help_behavior_hint="(default: as the column looks)")
columns = arg(metavar="WORD...", help_behavior_hint="(default: none)")
schedules = arg(metavar="{constant,cosine,linear}", help_behavior_hint="(default: what suits the learner)")


@dataclass
class TaskOptions:
    """Which tasks, in which sizes, and the networks for them: what train and compare share."""

    ways: Annotated[int | None, arg(metavar="INT")] = None  # classes in a task (None for regression)
    shots: int = 1  # support examples per class (regression: per task)
    queries: int = 15  # query examples per class (regression: per task)
    task: Annotated[str | None, word("none")] = None  # of a table: the column that says which task a row belongs to
    target: Annotated[str | None, word("none")] = None  # of a table: the column to predict
    time: Annotated[str | None, word("none")] = None  # of a table: the column by which support comes before query
    kind: Annotated[Literal["number", "class"] | None, kinds] = None  # of a table: what the target is
    ignore: Annotated[tuple[str, ...], columns] = ()  # of a table: columns to leave out
    categories: Annotated[tuple[str, ...], columns] = ()  # of a table: columns of numbers that are names
    user: Annotated[str | None, word("none")] = None  # of a table of ratings: the column of who rated
    item: Annotated[str | None, word("item")] = None  # of a table of ratings: the column of what was rated
    rating: Annotated[str | None, word("rating")] = None  # of a table of ratings: the column of the number given
    items: Annotated[str | None, word("none")] = None  # of a table of ratings: a table of the items' features
    item_id: Annotated[str | None, word("as in the ratings")] = None  # of that one: the column of items
    factors: int = 0  # of a table of ratings: length of the items' vectors learned from training users
    text: Annotated[str | None, word("none")] = None  # of a table of texts: the column that holds them
    label: Annotated[str | None, word("none")] = None  # of a table of texts: the column of their classes
    words: int = 24  # of texts: how many of one are read
    encoder: Annotated[str | None, word("hashed subwords")] = None  # of texts: a model of sentence_transformers
    data: Annotated[str | None, word("$QUICKSTUDY_DATA, or ./data")] = None  # folder of the data set
    size: int = 28  # images from a folder are scaled to size x size
    augment: Annotated[bool, FlagCreatePairsOff] = False  # change training images a little each time they are shown
    meta_batch: int = 16  # tasks per update
    network: Literal["conv4", "resnet12", "pixels"] = "conv4"  # network for images; pixels: none
    filters: int = 64  # filters of conv4, or of the first block of resnet12 (2.5, 5 and 10 times as many follow)
    norm: Literal["batch", "support", "layer", "none"] = "batch"  # normalisation of the network
    downsample: Annotated[Literal["stride", "pool"] | None, fitting("the learner")] = None  # how conv4 halves the image
    dropblock: float = 0.0  # share of its activations that resnet12 drops in training
    hidden: tuple[int, ...] = (40, 40)  # widths of the hidden layers of mlp
    device: str = "cpu"  # cpu or cuda


@dataclass
class TrainOptions(TaskOptions):
    """Meta-train a learner on many small tasks and keep the run in a folder.

    TASKS is a name that 'quickstudy list' shows, such as glyphs or cifar_fs, a folder of class folders, a table (then
    --task and --target name its columns), a table of ratings (--user, --item, --rating) or one of texts (--text,
    --label); LEARNER is a name from there, too.
    Further options are the learner's own: see them with 'quickstudy train TASKS LEARNER --help'.
    """

    iterations: int = 2000  # updates of the outer loop
    outer_lr: Annotated[float | None, number("what suits the learner")] = None  # learning rate of the outer loop
    schedule: Annotated[Literal["constant", "cosine", "linear"] | None, schedules] = None  # how it moves, down to 0
    seed: int = 0  # from which every draw of the run follows
    out: Annotated[str | None, word("runs/TASKS-LEARNER")] = None  # run folder
    resume: Annotated[bool, FlagCreatePairsOff] = False  # go on from the run folder's checkpoint
    # how tasks are run together
    engine: Literal["auto", "vmap", "threads", "loop", "replay", "replay-threads", "compile"] = "auto"
    chunk: Annotated[int | None, number("all that fit")] = None  # how many tasks are taken together at the most
    precision: Literal["float32", "bf16"] = "float32"  # of the meta-loss; how far bf16 is off is measured and told
    channels_last: Annotated[bool, FlagCreatePairsOff] = False  # lay out images with their channels last in memory
    val_every: Annotated[int | None, number("a tenth of all")] = None  # iterations between validations
    val_episodes: int = 100  # episodes of a validation
    patience: Annotated[int | None, number("never")] = None  # stop after so many validations without a better one
    keep: int = 1  # how many of the best checkpoints on validation are kept, for 'evaluate --ensemble'
    clip: Annotated[float | None, number("none")] = None  # bound on the norm of the meta-gradient
    tensorboard: Annotated[bool, FlagCreatePairsOff] = False  # also write the curve for TensorBoard, in the run folder


@dataclass
class PlanOptions(TrainOptions):
    """Say what a training will need before it runs: peak memory and time of every exact way to run it.

    Takes the options of 'quickstudy train', so that TASKS, LEARNER and what follows can stay as they are. Names the
    fastest setting that stays within --memory: engine, adjoint and chunk.
    """

    memory: Annotated[str | None, word("what there is")] = None  # for the whole process, as 500MB or 2GB


@dataclass
class CompareOptions(TaskOptions):
    """Train several learners for the same time, test them on the same tasks, and say which to choose.

    TASKS and LEARNER are those of 'quickstudy train'; finetune and baselines that need no training stand beside. Makes
    a folder with a run for each training, comparison.json and comparison.html.
    """

    minutes: float = 2.0  # of training for each learner and seed
    seeds: tuple[int, ...] = (0,)  # one training of each learner for every seed
    episodes: int = 600  # test episodes
    out: Annotated[str | None, word("runs/TASKS-compared")] = None  # folder
    resume: Annotated[bool, FlagCreatePairsOff] = False  # go on with a comparison that was cut
    png: Annotated[bool, FlagCreatePairsOff] = False  # also write the plots as pictures, into comparison-files
    csv: Annotated[bool, FlagCreatePairsOff] = False  # also write the numbers as CSV tables, likewise


@dataclass
class EvaluateOptions:
    """Score a trained run on unseen tasks: mean with 95 % interval, protocol, controls. Writes scores.json."""

    run: Positional[str]  # run folder
    episodes: int = 600  # test episodes
    ways: Annotated[int | None, number("as in training")] = None  # classes in a task
    shots: Annotated[int | None, number("as in training")] = None  # support examples per class
    queries: Annotated[int | None, number("as in training")] = None  # query examples per class
    steps: Annotated[int | None, number("as in training")] = None  # inner steps at test
    ensemble: int = 1  # how many of the best checkpoints answer together, their mean (takes training with --keep)
    seed: int = 1  # of the test episodes: the same seed gives every learner the same ones
    split: Literal["test", "val", "train"] = "test"  # whose classes
    data: Annotated[str | None, word("where training found it")] = None  # folder of the data set
    controls: Annotated[tuple[str, ...] | None, word("all that make sense")] = None  # controls to run
    instances: Annotated[tuple[int, ...] | None, number("1 2 5 10")] = None  # of a class in a stream: accuracy there
    engine: Literal["auto", "vmap", "threads", "loop"] = "auto"  # how tasks are run together


@dataclass
class AdaptOptions:
    """Teach a trained run one new task. Writes a predictor file."""

    run: Positional[str]  # run folder or .qs file
    support: Positional[str]  # folder with a subfolder per class, or a table as in training (numbers: answer last)
    out: str = "predictor.qs"  # file to write
    reject: Annotated[bool, FlagCreatePairsOff] = False  # learn from validation tasks what is none of the classes, too


@dataclass
class PredictOptions:
    """Answer for new inputs with an adapted predictor."""

    predictor: Positional[str]  # file that 'quickstudy adapt' wrote
    inputs: Positional[tuple[str, ...]]  # images or folders of them; tables; texts, a line each; CSV files of numbers
    json: Annotated[bool, FlagCreatePairsOff] = False  # print a list of objects with input, label, probability
    csv: Annotated[str | None, word("none")] = None  # file to write: the rows of a table, or inputs, and the answers
    reject: Annotated[bool, FlagCreatePairsOff] = False  # mark what is none of the classes (takes 'adapt --reject')


@dataclass
class ReportOptions:
    """Write one self-contained HTML page about a run or a comparison of several, and its plots and numbers as files."""

    runs: Positional[tuple[str, ...]]  # run folders
    out: Annotated[str | None, word("report.html in the run folder")] = None  # file to write
    png: Annotated[bool, FlagCreatePairsOff] = False  # also write the plots as pictures, into report-files beside it
    csv: Annotated[bool, FlagCreatePairsOff] = False  # also write the numbers as CSV tables, likewise


@dataclass
class CheckOptions:
    """Compare the meta-gradient of your own model or learner with finite differences; exits 1 when it is wrong.

    FACTORY is called without arguments and gives a learner, a pair (learner, episode), or a torch.nn.Module, which is
    put into MAML. Without an episode, a random one is drawn.
    """

    factory: Positional[str]  # MODULE:FACTORY, as in my_model.py:make or package.models:Net
    shape: Annotated[tuple[str, ...], arg(metavar="N...", help_behavior_hint="")] = ()  # of an input, as 1 28 28
    ways: Annotated[int | None, number("regression, or as the learner says")] = None  # classes in the task
    shots: int = 3  # support examples per class (regression: per task)
    queries: int = 3  # query examples per class (regression: per task)
    lr: float = 0.1  # inner learning rate around a network
    steps: int = 2  # inner steps around a network
    directions: int = 3  # random directions per parameter
    tolerance: float = 1e-5  # relative difference that is let pass
    seed: int = 0  # of the weights, the episode and the directions
