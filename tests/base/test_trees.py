"""Nested values of tensors: what is done to one tensor is done to each, and what does not fit is named."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from quickstudy.base import trees
from quickstudy.errors import DataError


class Pair(NamedTuple):
    tokens: torch.Tensor
    mask: torch.Tensor


def nested(n: int = 4) -> dict:
    return {"text": Pair(torch.arange(n * 3).reshape(n, 3), torch.ones(n, 3)), "age": [torch.arange(n) / 2]}


def equal(a, b) -> bool:
    return trees.sizes(a) == trees.sizes(b) and all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(trees.tensors(a), trees.tensors(b), strict=True)
    )


@pytest.mark.parametrize("tree", [torch.arange(12.0).reshape(4, 3), nested()], ids=["tensor", "nested"])
def test_taking_apart_and_putting_together(tree):
    assert trees.size(tree) == 4
    parts = [trees.rows(tree, slice(0, 1)), trees.rows(tree, [1]), trees.rows(tree, torch.tensor([2, 3]))]
    assert equal(trees.joined(parts), tree)
    assert equal(trees.stacked(trees.unstacked(tree)), tree)
    assert equal(trees.rows(trees.rows(tree, [3, 1]), [1, 0]), trees.rows(tree, [1, 3]))
    assert trees.uneven(tree) is None
    assert trees.sizes(parts[0]) != trees.sizes(tree) and trees.sizes(parts[0], skip=1) == trees.sizes(tree, skip=1)


def test_a_change_keeps_the_structure_and_the_types_of_what_it_does_not_touch():
    doubled = trees.mapped(lambda t: 2 * t if t.is_floating_point() else t, nested())
    assert isinstance(doubled["text"], Pair) and isinstance(doubled["age"], list)
    assert torch.equal(doubled["text"].tokens, nested()["text"].tokens)
    assert torch.equal(doubled["age"][0], torch.arange(4.0))


def test_equal_shapes_in_another_structure_are_another_size():
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    sizes = {trees.sizes(tree) for tree in ({"x": a, "y": b}, {"x": a, "z": b}, (a, b), [a, b], a)}
    assert len(sizes) == 5
    with pytest.raises(DataError, match=r"not built alike: \['x'\] \(2, 3\), but then \['z'\] \(2, 3\)"):
        trees.joined([{"x": a}, {"z": a}])


def test_rows_that_are_missing_are_counted_by_name():
    assert trees.uneven({"a": torch.zeros(3), "b": torch.zeros(2, 5)}) == "['a'] has 3 rows, ['b'] has 2 rows"
    assert trees.uneven({"a": torch.zeros(3), "b": torch.tensor(1.0)}) is not None


def test_anything_but_tensors_is_refused_with_its_type():
    with pytest.raises(DataError, match="among them is a ndarray"):
        trees.tensors({"a": np.zeros(3)})
    with pytest.raises(DataError, match="among them is a NoneType"):
        trees.mapped(lambda t: t, {"a": None})
    with pytest.raises(DataError, match="no tensor at all"):
        trees.size({})


@pytest.mark.parametrize(
    ("value", "several"),
    [
        ([[1, 2], [3, 4]], False),
        (((1, 2), (3, 4)), False),  # rows of numbers
        (("a", "b"), False),  # names
        (tuple(torch.tensor([1, 2])), False),  # numbers, each in a tensor of its own
        ((torch.zeros(2), torch.zeros(2)), True),
        ({"a": [1, 2]}, True),
        (np.zeros(2), False),
    ],
)
def test_what_is_one_array_and_what_are_several(value, several):
    assert trees.is_nested(value) is several


def test_conversion_tells_the_place_of_each_array():
    places = []

    def noted(place, array):
        places.append(place)
        return torch.as_tensor(array)

    found = trees.converted({"text": Pair(np.zeros(2), np.ones(2)), "age": [1, 2]}, noted)
    assert places == ["['age']", "['text'][0]", "['text'][1]"], "names come in order"
    assert isinstance(found["text"], Pair) and found["age"].tolist() == [1, 2]
    trees.converted([1.0, 2.0], noted)
    assert places[-1] == ""


def test_the_order_of_names_does_not_tell_two_inputs_apart():
    def read(value):
        return trees.converted(value, lambda place, array: torch.as_tensor(array))

    ones, others = read({"b": np.zeros(3), "a": np.ones(3)}), read({"a": np.ones(3), "b": np.zeros(3)})
    assert trees.sizes(ones) == trees.sizes(others)
    assert trees.joined([ones, others])["b"].tolist() == [0.0] * 6
    assert list(read({2: [0.0], "b": [0.0], 1: [0.0]})) == [1, 2, "b"]
