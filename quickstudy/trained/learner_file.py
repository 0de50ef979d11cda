"""Converts learners to plain values and tensors for `.qs` files and run configs, and builds them again from these.

Networks of `qs.nn` are rebuilt from their options, torch's losses from their names. For a module of the user's own,
only the tensors are kept, and the user must pass the module again. Nothing is pickled.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from quickstudy.base import seeds
from quickstudy.base.version import __version__
from quickstudy.errors import ConfigError, FileFormatError
from quickstudy.inner.rules import Rule, make_rule
from quickstudy.learner import LOSSES, Learner, Theta, describe_learner, networks, plain_value
from quickstudy.learners import LEARNERS
from quickstudy.nn import NETWORKS
from quickstudy.nn.parameters import constants, part
from quickstudy.nn.text import TextEncoder


def learner_header(learner: Learner) -> dict[str, Any]:
    """The header entries of a file that describe its learner and the version of Quickstudy."""
    return {"learner": describe_learner(learner), "quickstudy": __version__}


def build_learner(path: Any, header: Mapping[str, Any], tensors: Theta, given: Mapping[str, Any]) -> Learner:
    """The learner of a file; `given` holds the fields that a file cannot hold, by name.

    Raises FileFormatError where one of them is missing or does not fit, and for an unknown learner or field.
    """
    classes = {cls.__name__: cls for cls in LEARNERS.values()}
    name, fields = header["learner"]["name"], header["learner"]["fields"]
    if name not in classes:
        raise FileFormatError(f"{str(path)!r} holds a {name}, which this Quickstudy does not know. Upgrade it.")
    known = {f.name for f in dataclasses.fields(classes[name])}  # type: ignore[arg-type]
    if unknown := set(fields) - known:
        raise FileFormatError(
            f"{str(path)!r} needs the field(s) {', '.join(sorted(unknown))} of {name}. Upgrade Quickstudy."
        )
    built = {key: _rebuilt(path, key, value, given) for key, value in fields.items()}
    for key, value in built.items():
        if isinstance(value, nn.Module):
            built[key] = _with_constants(value, part(tensors, f"constant.{key}."))
            for layer in built[key].modules() if key not in given else ():
                # Where its training began follows from its constants.
                if isinstance(layer, TextEncoder) and layer.weights.weight.requires_grad:
                    layer.begin_at_idf()
    return classes[name](**built)


def _rebuilt(path: Any, key: str, value: Any, given: Mapping[str, Any]) -> Any:
    if key in given:
        return given[key]
    if isinstance(value, list):  # JSON turns tuples into lists, and frozen fields hold no lists
        return tuple(value)
    if not isinstance(value, Mapping) or "text" not in value:
        return value
    if value.get("network"):
        options = dict(value["network"])
        # A file keeps no initial weights. Those drawn here are what an untrained learner is measured with.
        with seeds.seeded(0, "network"):
            return NETWORKS[options.pop("name")](**options)
    if value.get("function"):
        return LOSSES[value["function"]]
    if value.get("rule"):
        return _rule(path, value["rule"])
    raise FileFormatError(
        f"{str(path)!r} was made with a {key} of your own, which a file cannot hold: {value['text'][:200]}. Pass it: "
        f"qs.load(path, {key}=...)."
    )


def _rule(path: Any, kept: Mapping[str, Any]) -> Rule:
    try:
        return make_rule(kept["maker"], kept["settings"])
    except (ConfigError, KeyError) as error:
        raise FileFormatError(f"{str(path)!r} holds an update rule that cannot be made: {error}") from error


def learner_tensors(learner: Learner) -> Theta:
    """What the learner's networks hold besides theta: buffers and frozen parameters."""
    parts = (
        (f"constant.{key}.{name}", value)
        for key, m in networks(learner).items()
        for name, value in constants(m).items()
    )
    return dict(parts)


def extractor_header(extractor: nn.Module | None) -> dict[str, Any]:
    """The header entry of a file that describes its frozen feature extractor; empty without one."""
    return {} if extractor is None else {"extractor": plain_value(extractor)}


def extractor_tensors(extractor: nn.Module | None) -> Theta:
    """The weights of the extractor by their names in a file; empty without one."""
    return {} if extractor is None else {f"extractor.{name}": value for name, value in constants(extractor).items()}


def build_extractor(path: Any, header: Mapping[str, Any], tensors: Theta, given: Mapping[str, Any]) -> nn.Module | None:
    """The extractor of a file, frozen; None where it has none.

    Raises FileFormatError where it is a module of the user's own that is not `given`, or one that does not fit.
    """
    if "extractor" not in header:
        return None
    made = _rebuilt(path, "extractor", header["extractor"], given)
    return _with_constants(copy.deepcopy(made), part(tensors, "extractor.")).eval().requires_grad_(False)


def _with_constants(model: nn.Module, values: Theta) -> nn.Module:
    if not values:
        return model
    filled = copy.deepcopy(model)
    try:
        filled.load_state_dict(values, strict=False)
    except RuntimeError as error:
        raise FileFormatError(
            f"the network does not fit the file: {str(error).splitlines()[-1].strip()} Pass the network that was "
            "trained."
        ) from error
    for name, parameter in filled.named_parameters():
        if name in values:  # frozen when it was saved
            parameter.requires_grad_(False)
    return filled


def check_theta(path: Any, learner: Learner, theta: Theta) -> None:
    """Raise FileFormatError where the names or shapes of theta are not those of this learner."""
    expected = {name: tuple(value.shape) for name, value in learner.init().items()}
    found = {name: tuple(value.shape) for name, value in theta.items()}
    if expected != found:
        name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise FileFormatError(
            f"the network does not fit {str(path)!r}: {name!r} has shape {expected.get(name, 'none')} in the network "
            f"and {found.get(name, 'none')} in the file. Pass the network that was trained."
        )
