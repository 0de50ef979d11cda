"""The options of each command, as dataclasses. The comment behind a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from quickstudy.base.options import choice, number, switch, word
from quickstudy.experiments.comparison import MINUTES, SEEDS
from quickstudy.experiments.request import Request
from quickstudy.training.settings import TrainSettings


@dataclass(frozen=True)
class TaskOptions(Request):
    """The options that train, plan and compare share: the tasks, how they are read, and the networks for them."""

    network: Literal["conv4", "resnet12", "pixels"] = "conv4"  # network for images; pixels: no network
    filters: int = 64  # filters of conv4, or of the first block of resnet12 (the next have 2.5, 5 and 10 times as many)
    norm: Literal["batch", "support", "layer", "none"] = "batch"  # normalisation of the network
    # how conv4 halves the image
    downsample: Annotated[Literal["stride", "pool"] | None, choice("stride,pool", "what suits the learner")] = None
    dropblock: float = 0.0  # share of activations that resnet12 drops in training
    hidden: tuple[int, ...] = (40, 40)  # widths of mlp's hidden layers
    device: str = "cpu"  # cpu or cuda

    def network_options(self) -> dict[str, Any]:
        """The options of the network that are given, by name."""
        chosen = self.values("network", "filters", "norm", "downsample", "dropblock", "hidden")
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class TrainOptions(TrainSettings, TaskOptions):
    """Meta-train a learner on many small tasks and keep the run in a folder.

    TASKS is a name that 'quickstudy list' shows, such as glyphs or cifar_fs, a folder of class folders, a table (then
    --task and --target name its columns), a table of ratings (--user, --item, --rating) or a table of texts (--text,
    --label). LEARNER is also a name that 'quickstudy list' shows.
    Each learner has further options of its own: see them with 'quickstudy train TASKS LEARNER --help'.
    """

    outer_lr: Annotated[float | None, number("what suits the learner")] = None  # learning rate of the outer loop
    # how outer_lr falls to 0
    schedule: Annotated[
        Literal["constant", "cosine", "linear"] | None, choice("constant,cosine,linear", "what suits the learner")
    ] = None
    out: Annotated[str | None, word("runs/TASKS-LEARNER")] = None  # run folder
    resume: Annotated[bool, switch] = False  # continue from the run folder's checkpoint


@dataclass(frozen=True)
class PlanOptions(TrainOptions):
    """Predict what a training will need before it runs: peak memory and time of every exact way to run it.

    Takes the options of 'quickstudy train', so that the rest of the command line stays the same. Prints the fastest
    setting that stays within --memory: engine, adjoint and chunk.
    """

    memory: Annotated[str | None, word("what there is")] = None  # limit for the whole process, such as 500MB or 2GB


@dataclass(frozen=True)
class CompareOptions(TaskOptions):
    """Train several learners for the same time, test them on the same tasks, and say which to choose.

    TASKS and LEARNER are those of 'quickstudy train'. The comparison also includes finetune, and baselines that need no
    training. Makes a folder with a run for each training, comparison.json and comparison.html.
    """

    meta_batch: int = TrainSettings.meta_batch  # tasks per update
    minutes: float = MINUTES  # minutes of training for each learner and seed
    seeds: tuple[int, ...] = SEEDS  # one training of each learner for every seed
    episodes: int = 600  # test episodes
    metric: Annotated[str | None, word("what fits the loss")] = None  # what is scored, such as 'mean absolute error'
    out: Annotated[str | None, word("runs/TASKS-compared")] = None  # folder of the comparison
    resume: Annotated[bool, switch] = False  # continue a comparison that was interrupted
    png: Annotated[bool, switch] = False  # also write the plots as pictures, into comparison-files
    csv: Annotated[bool, switch] = False  # also write the numbers as CSV tables, into comparison-files


@dataclass(frozen=True)
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
    metric: Annotated[str | None, word("as in training")] = None  # what is scored, such as 'mean absolute error'
    instances: Annotated[tuple[int, ...] | None, number("1 2 5 10")] = None  # streams: instances of a class to score
    engine: Literal["auto", "vmap", "threads", "loop"] = "auto"  # how tasks are computed together


@dataclass(frozen=True)
class AdaptOptions:
    """Teach a trained run one new task. Writes a predictor file."""

    run: Positional[str]  # run folder or .qs file
    support: Positional[str]  # folder with a subfolder per class, or a table as in training (numbers: answer last)
    out: str = "predictor.qs"  # file to write
    reject: Annotated[bool, switch] = False  # also learn on validation tasks what is none of the classes


@dataclass(frozen=True)
class PredictOptions:
    """Predict the answers for new inputs with an adapted predictor."""

    predictor: Positional[str]  # file that 'quickstudy adapt' wrote
    inputs: Positional[tuple[str, ...]]  # images or folders of them; tables; texts, one per line; CSV files of numbers
    json: Annotated[bool, switch] = False  # print a list of objects with input, label, probability
    csv: Annotated[str | None, word("none")] = None  # file to write: table rows or inputs, with answers
    reject: Annotated[bool, switch] = False  # mark inputs of none of the classes (needs 'adapt --reject')


@dataclass(frozen=True)
class ReportOptions:
    """Write one self-contained HTML page about a run, or about several runs compared. Also writes plots and numbers."""

    runs: Positional[tuple[str, ...]]  # run folders
    out: Annotated[str | None, word("report.html in the run folder")] = None  # file to write
    png: Annotated[bool, switch] = False  # also write the plots as pictures, into report-files beside it
    csv: Annotated[bool, switch] = False  # also write the numbers as CSV tables, into report-files


@dataclass(frozen=True)
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
