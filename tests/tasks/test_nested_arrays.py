"""Tasks from arrays in dicts and tuples: what is kept as it is, and what does not fit."""

import numpy as np
import pytest
import torch

import quickstudy as qs
from quickstudy.errors import DataError


def task(**changes) -> dict:
    def inputs(n: int) -> dict:
        return {
            "tokens": np.ones((n, 5), dtype=np.int32),
            "mask": np.ones((n, 5)),
            "pixels": np.full((n, 2), 255, "uint8"),
        }

    made = {"support": inputs(4), "support_labels": [0, 0, 1, 1], "query": inputs(2), "query_labels": [1, 0]}
    return made | changes


def test_whole_numbers_in_a_dict_keep_their_type():
    tasks = qs.tasks.from_arrays([task(), task()])
    x = tasks.sample(3).support.x
    assert x["tokens"].shape == (3, 4, 5) and x["tokens"].dtype == torch.int32
    assert x["mask"].dtype == torch.float32
    assert x["pixels"].dtype == torch.uint8 and int(x["pixels"].max()) == 255
    assert tasks.ways == 2
    assert tasks.describe() == {
        "name": "arrays",
        "split": "train",
        "ways": 2,
        "shots": 2,
        "queries": 1,
        "tasks": 2,
    }


def test_tasks_may_name_their_inputs_in_different_orders():
    turned = task()
    turned["support"] = dict(reversed(turned["support"].items()))
    assert qs.tasks.from_arrays([task(), turned]).sample(3).support.x["tokens"].shape == (3, 4, 5)


def test_a_single_array_of_whole_numbers_is_numbers():
    plain = {"support": np.ones((2, 3), dtype=np.int64), "query": np.full((2, 3), 255, dtype=np.uint8)}
    made = qs.tasks.from_arrays([plain | {"support_labels": [0, 1], "query_labels": [0, 1]}]).episodes
    assert made.support.x.dtype == torch.float32 and float(made.query.x.max()) == 1.0


def test_several_targets_are_neither_classes_nor_one_value():
    labels = {"class": np.array([0, 0, 2, 2]), "value": np.zeros(4)}
    asked = {"class": np.array([1, 0]), "value": np.zeros(2)}
    tasks = qs.tasks.from_arrays([task(support_labels=labels, query_labels=asked)])
    assert tasks.ways is None and tasks.describe()["shots"] == 4
    y = tasks.episodes.query.y
    assert y["class"].dtype == torch.int64 and y["value"].shape == (1, 2)


def test_inputs_in_order():
    pair = (np.ones((2, 3)), np.ones(2, dtype=np.int64))
    made = qs.tasks.from_arrays([{"support": pair, "support_labels": [0, 1], "query": pair, "query_labels": [0, 1]}])
    assert isinstance(made.sample(2).query.x, tuple) and made.sample(2).query.x[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"query": {"tokens": np.ones((2, 5)), "mask": np.ones((1, 5))}},
            r"of 'query' \['mask'\] has 1 rows, \['tokens'\]",
        ),
        ({"support_labels": [0, 1]}, "has 4 support examples and 2 support_labels"),
        ({"query": {"tokens": np.full((2, 5), np.nan)}}, r"'query'\['tokens'\] holds NaN"),
        ({"query": {"tokens": [["a"], ["b"]]}}, r"'query'\['tokens'\] is not an array of numbers"),
        ({"query": {"tokens": 3}}, r"'query'\['tokens'\] is a single number"),
        ({"query_labels": {"class": [1, 0]}}, "both must be alike"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(DataError, match=message):
        qs.tasks.from_arrays([task(**changes)])


def test_tasks_that_are_not_built_alike_are_named():
    odd = task()
    del odd["support"]["mask"]
    with pytest.raises(
        DataError, match=r"task 1: 'support' is \['pixels'\] \(4, 2\), \['tokens'\] \(4, 5\) \['pixels'\]"
    ):
        qs.tasks.from_arrays([task(), odd])
