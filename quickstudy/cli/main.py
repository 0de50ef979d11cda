"""The command line: train, plan, evaluate, adapt, predict, compare, report, check, list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from quickstudy.base import memory
from quickstudy.base.version import __version__
from quickstudy.cli.answering import adapt, predict
from quickstudy.cli.checking import check, list_all
from quickstudy.cli.comparing import compare
from quickstudy.cli.evaluating import evaluate, report
from quickstudy.cli.training import LESS_MEMORY, plan, train
from quickstudy.engine import ranks
from quickstudy.errors import ConfigError, QuickstudyError, first_line, suggest

OVERVIEW = f"""Quickstudy {__version__}: train once on many small tasks, then learn a new task from a few examples.

  quickstudy train TASKS LEARNER        meta-train; TASKS is glyphs, cifar_fs, ..., a folder of class folders, a table
                                        (--task, --target), a table of ratings (--user, --item,
                                        --rating) or a table of texts (--text, --label)
  quickstudy plan TASKS LEARNER         memory and time of that training, and what fits (--memory 2GB)
  quickstudy evaluate RUN               score on unseen tasks, with interval and controls
  quickstudy adapt RUN SUPPORT --out F  learn one new task: a folder with a subfolder per class, or a table
  quickstudy predict F INPUT...         answer for new images, rows or texts (--json for programs)
  quickstudy compare TASKS LEARNER...   the same training time for each, the same test tasks: which one to choose
  quickstudy report RUN...              one HTML page to look at and to show
  quickstudy check MODULE:FACTORY       is the meta-gradient of your own model or learner right?
  quickstudy list                       the learners, tasks and controls there are

quickstudy COMMAND --help tells the options. A first try that works anywhere:

  quickstudy train glyphs protonet --iterations 300 --out runs/first"""


# A command may return its exit code; None means 0.
COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "plan": plan,
    "compare": compare,
    "evaluate": evaluate,
    "adapt": adapt,
    "predict": predict,
    "report": report,
    "check": check,
    "list": list_all,
}
SHARED = ("train", "evaluate")  # commands that several processes can run together


def run(argv: Sequence[str]) -> int:
    """Run a command line, given without the program's name; returns the exit code.

    The code is 0 for success, 1 for a failed check, 2 for bad input or too little memory (one message, no traceback),
    and 130 for an interrupt.
    """
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0
    if command == "--version":
        print(f"quickstudy {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            raise ConfigError(
                f"unknown command {command!r}; there are {', '.join(COMMANDS)}.{suggest(command, COMMANDS)}"
            )
        if command not in SHARED:
            ranks.alone(f"'quickstudy {command}'")
        return COMMANDS[command](rest) or 0
    except QuickstudyError as error:
        where = f" (rank {ranks.rank()})" if ranks.rank() else ""
        print(f"quickstudy{where}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        print(f"quickstudy: memory ran out: {first_line(error)}. {LESS_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if ranks.first():
            print("\nstopped. A training run continues with the same command and --resume.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed our output, as in `quickstudy predict ... | head`
        return 0


def main() -> None:
    """Entry point of the `quickstudy` command."""
    sys.exit(run(sys.argv[1:]))
