"""The options of each command, as dataclasses. The comment behind a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg


def number(default: str) -> Any:
    """An optional number; `default` says in the help what happens without it."""
    return arg(metavar="NUMBER", help_behavior_hint=f"(default: {default})")


def word(default: str) -> Any:
    """An optional word or path; `default` says in the help what happens without it."""
    return arg(metavar="WORD", help_behavior_hint=f"(default: {default})")


def fitting(what: str) -> Any:
    """An optional choice of downsampling; its default depends on `what`."""
    return arg(metavar="{stride,pool}", help_behavior_hint=f"(default: what suits {what})")


kinds = arg(metavar="{number,class}", help_behavior_hint="(default: as the column looks)")
columns = arg(metavar="WORD...", help_behavior_hint="(default: none)")
schedules = arg(metavar="{constant,cosine,linear}", help_behavior_hint="(default: what suits the learner)")


@dataclass
class TaskOptions:
    """The options that train, plan and compare share: the tasks, their sizes, and the networks for them."""

    ways: Annotated[int | None, arg(metavar="INT")] = None  # classes in a task (None for regression)
    shots: int = 1  # support examples per class (regression: per task)
    queries: int = 15  # query examples per class (regression: per task)
    task: Annotated[str | None, word("none")] = None  # table: the column that says which task a row belongs to
    target: Annotated[str | None, word("none")] = None  # table: the column to predict
    time: Annotated[str | None, word("none")] = None  # table: the column of time; support rows come before query rows
    kind: Annotated[Literal["number", "class"] | None, kinds] = None  # table: whether the target is a number or a class
    ignore: Annotated[tuple[str, ...], columns] = ()  # table: columns to leave out
    categories: Annotated[tuple[str, ...], columns] = ()  # table: columns whose numbers are names of categories
    user: Annotated[str | None, word("none")] = None  # ratings: the column of the user who rated
    item: Annotated[str | None, word("item")] = None  # ratings: the column of the item that was rated
    rating: Annotated[str | None, word("rating")] = None  # ratings: the column of the rating itself
    items: Annotated[str | None, word("none")] = None  # ratings: a second table, with the items' features
    item_id: Annotated[str | None, word("as in the ratings")] = None  # ratings: the column of items in that table
    factors: int = 0  # ratings: length of the item vectors that are learned from training users
    text: Annotated[str | None, word("none")] = None  # table of texts: the column of texts
    label: Annotated[str | None, word("none")] = None  # table of texts: the column of their classes
    words: int = 24  # texts: how many words of each text are read
    encoder: Annotated[str | None, word("hashed subwords")] = None  # texts: a model of sentence_transformers
    data: Annotated[str | None, word("$QUICKSTUDY_DATA, or ./data")] = None  # folder of the data set
    size: int = 28  # images from a folder are scaled to size x size
    augment: Annotated[bool, FlagCreatePairsOff] = False  # change training images at random each time they are drawn
    meta_batch: int = 16  # tasks per update
    network: Literal["conv4", "resnet12", "pixels"] = "conv4"  # network for images; pixels: no network
    filters: int = 64  # filters of conv4, or of the first block of resnet12 (the next have 2.5, 5 and 10 times as many)
    norm: Literal["batch", "support", "layer", "none"] = "batch"  # normalisation of the network
    downsample: Annotated[Literal["stride", "pool"] | None, fitting("the learner")] = None  # how conv4 halves the image
    dropblock: float = 0.0  # share of activations that resnet12 drops in training
    hidden: tuple[int, ...] = (40, 40)  # widths of mlp's hidden layers
    device: str = "cpu"  # cpu or cuda


@dataclass
class TrainOptions(TaskOptions):
    """Meta-train a learner on many small tasks and keep the run in a folder.

    TASKS is a name that 'quickstudy list' shows, such as glyphs or cifar_fs, a folder of class folders, a table (then
    --task and --target name its columns), a table of ratings (--user, --item, --rating) or a table of texts (--text,
    --label). LEARNER is also a name that 'quickstudy list' shows.
    Each learner has further options of its own: see them with 'quickstudy train TASKS LEARNER --help'.
    """

    iterations: int = 2000  # updates of the outer loop
    outer_lr: Annotated[float | None, number("what suits the learner")] = None  # learning rate of the outer loop
    schedule: Annotated[Literal["constant", "cosine", "linear"] | None, schedules] = None  # how outer_lr falls to 0
    seed: int = 0  # determines every random draw of the run
    out: Annotated[str | None, word("runs/TASKS-LEARNER")] = None  # run folder
    resume: Annotated[bool, FlagCreatePairsOff] = False  # continue from the run folder's checkpoint
    # how the tasks of an update are computed together
    engine: Literal["auto", "vmap", "threads", "loop", "replay", "replay-threads", "compile"] = "auto"
    chunk: Annotated[int | None, number("all that fit")] = None  # at most so many tasks are computed together
    precision: Literal["float32", "bf16"] = "float32"  # of the meta-loss; the error of bf16 is measured and reported
    channels_last: Annotated[bool, FlagCreatePairsOff] = False  # store images in memory with their channels last
    val_every: Annotated[int | None, number("a tenth of all")] = None  # iterations between validations
    val_episodes: int = 100  # episodes of a validation
    patience: Annotated[int | None, number("never")] = None  # stop after so many validations without improvement
    keep: int = 1  # how many checkpoints, the best on validation, are kept for 'evaluate --ensemble'
    clip: Annotated[float | None, number("none")] = None  # largest norm of the meta-gradient
    tensorboard: Annotated[bool, FlagCreatePairsOff] = False  # also write the curve for TensorBoard to the run folder


@dataclass
class PlanOptions(TrainOptions):
    """Predict what a training will need before it runs: peak memory and time of every exact way to run it.

    Takes the options of 'quickstudy train', so that the rest of the command line stays the same. Prints the fastest
    setting that stays within --memory: engine, adjoint and chunk.
    """

    memory: Annotated[str | None, word("what there is")] = None  # limit for the whole process, such as 500MB or 2GB


@dataclass
class CompareOptions(TaskOptions):
    """Train several learners for the same time, test them on the same tasks, and say which to choose.

    TASKS and LEARNER are those of 'quickstudy train'. The comparison also includes finetune, and baselines that need no
    training. Makes a folder with a run for each training, comparison.json and comparison.html.
    """

    minutes: float = 2.0  # minutes of training for each learner and seed
    seeds: tuple[int, ...] = (0,)  # one training of each learner for every seed
    episodes: int = 600  # test episodes
    out: Annotated[str | None, word("runs/TASKS-compared")] = None  # folder of the comparison
    resume: Annotated[bool, FlagCreatePairsOff] = False  # continue a comparison that was interrupted
    png: Annotated[bool, FlagCreatePairsOff] = False  # also write the plots as pictures, into comparison-files
    csv: Annotated[bool, FlagCreatePairsOff] = False  # also write the numbers as CSV tables, into comparison-files


@dataclass
class EvaluateOptions:
    """Score a trained run on unseen tasks: mean with 95 % interval, protocol and controls. Writes scores.json."""

    run: Positional[str]  # run folder
    episodes: int = 600  # test episodes
    ways: Annotated[int | None, number("as in training")] = None  # classes in a task
    shots: Annotated[int | None, number("as in training")] = None  # support examples per class
    queries: Annotated[int | None, number("as in training")] = None  # query examples per class
    steps: Annotated[int | None, number("as in training")] = None  # inner steps at test
    ensemble: int = 1  # average the answers of so many of the best checkpoints (needs training with --keep)
    seed: int = 1  # seed of the test episodes: the same seed gives every learner the same episodes
    split: Literal["test", "val", "train"] = "test"  # which classes or tasks
    data: Annotated[str | None, word("where training found it")] = None  # folder of the data set
    controls: Annotated[tuple[str, ...] | None, word("all that make sense")] = None  # controls to run
    instances: Annotated[tuple[int, ...] | None, number("1 2 5 10")] = None  # streams: instances of a class to score
    engine: Literal["auto", "vmap", "threads", "loop"] = "auto"  # how tasks are computed together


@dataclass
class AdaptOptions:
    """Teach a trained run one new task. Writes a predictor file."""

    run: Positional[str]  # run folder or .qs file
    support: Positional[str]  # folder with a subfolder per class, or a table as in training (numbers: answer last)
    out: str = "predictor.qs"  # file to write
    reject: Annotated[bool, FlagCreatePairsOff] = False  # also learn on validation tasks what is none of the classes


@dataclass
class PredictOptions:
    """Predict the answers for new inputs with an adapted predictor."""

    predictor: Positional[str]  # file that 'quickstudy adapt' wrote
    inputs: Positional[tuple[str, ...]]  # images or folders of them; tables; texts, one per line; CSV files of numbers
    json: Annotated[bool, FlagCreatePairsOff] = False  # print a list of objects with input, label, probability
    csv: Annotated[str | None, word("none")] = None  # file to write: table rows or inputs, with answers
    reject: Annotated[bool, FlagCreatePairsOff] = False  # mark inputs of none of the classes (needs 'adapt --reject')


@dataclass
class ReportOptions:
    """Write one self-contained HTML page about a run, or about several runs compared. Also writes plots and numbers."""

    runs: Positional[tuple[str, ...]]  # run folders
    out: Annotated[str | None, word("report.html in the run folder")] = None  # file to write
    png: Annotated[bool, FlagCreatePairsOff] = False  # also write the plots as pictures, into report-files beside it
    csv: Annotated[bool, FlagCreatePairsOff] = False  # also write the numbers as CSV tables, into report-files


@dataclass
class CheckOptions:
    """Compare the meta-gradient of your own model or learner with finite differences; exits with 1 if it is wrong.

    FACTORY is called without arguments and returns a learner, a pair (learner, episode), or a torch.nn.Module, which is
    wrapped in MAML. Without an episode, a random one is drawn.
    """

    factory: Positional[str]  # MODULE:FACTORY, such as my_model.py:make or package.models:Net
    shape: Annotated[tuple[str, ...], arg(metavar="N...", help_behavior_hint="")] = ()  # of one input, such as 1 28 28
    ways: Annotated[int | None, number("regression, or as the learner says")] = None  # classes in the task
    shots: int = 3  # support examples per class (regression: per task)
    queries: int = 3  # query examples per class (regression: per task)
    lr: float = 0.1  # inner learning rate, for a network that is wrapped in MAML
    steps: int = 2  # inner steps, for a network that is wrapped in MAML
    directions: int = 3  # random directions per parameter
    tolerance: float = 1e-5  # largest relative difference that passes
    seed: int = 0  # seed of the weights, the episode and the directions


def parse(options: Any, argv: list[str], command: str) -> Any:
    return tyro.cli(options, args=argv, prog=f"quickstudy {command}", config=(OmitArgPrefixes,))
