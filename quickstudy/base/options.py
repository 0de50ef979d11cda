"""How an option looks in the help of the command line, for dataclasses whose fields are options.

The field's comment is its help text, and its default is shown behind it. Where None stands for something else than
nothing, the words given here are shown in place of the default.
"""

from __future__ import annotations

from typing import Any

from tyro.conf import FlagCreatePairsOff, arg

switch = FlagCreatePairsOff  # an option that is off unless it is named


def number(default: str) -> Any:
    """An optional number; `default` says in the help what happens without it."""
    return arg(metavar="NUMBER", help_behavior_hint=f"(default: {default})")


def word(default: str) -> Any:
    """An optional word or path; `default` says in the help what happens without it."""
    return arg(metavar="WORD", help_behavior_hint=f"(default: {default})")


def several(default: str) -> Any:
    """Any number of words; `default` says in the help what happens without them."""
    return arg(metavar="WORD...", help_behavior_hint=f"(default: {default})")


def choice(names: str, default: str) -> Any:
    """An optional choice of `names`, such as "stride,pool"; `default` says in the help what happens without it."""
    return arg(metavar=f"{{{names}}}", help_behavior_hint=f"(default: {default})")
