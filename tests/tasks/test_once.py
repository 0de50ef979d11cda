"""All examples of a task source, each once: what a statistic of the training examples is computed from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import clusters
from torch import Tensor

import quickstudy as qs
from quickstudy.tasks.source import DRAWN, source_of


def rows_of(batches: Any) -> list[list[float]]:
    """The examples with their answers, sorted."""
    return sorted(torch.cat([torch.cat([x.flatten(1), y.reshape(len(y), -1)], 1) for x, y in batches]).tolist())


def groups() -> qs.tasks.GroupTasks:
    x, y = torch.randn(23, 2), torch.randn(23, 1)
    return qs.tasks.GroupTasks(x, y, torch.tensor([0, 9, 10, 23]), ["a", "b", "c"], shots=2, queries=3)


def arrays() -> Any:
    def task() -> dict[str, Tensor]:
        x, xq, y = torch.randn(3, 2), torch.randn(2, 2), torch.randn(5, 1)
        return {"support": x, "support_labels": y[:3], "query": xq, "query_labels": y[3:]}

    return qs.tasks.from_arrays([task() for _ in range(4)])


def test_a_pool_of_classes_gives_each_example_once_with_its_class():
    pool = clusters(classes=5, each=7)
    wanted = torch.cat([pool.examples, torch.arange(5).repeat_interleave(7)[:, None]], 1)
    batches = list(source_of(pool).pooled().once(torch.Generator().manual_seed(0)))
    assert rows_of(batches) == sorted(wanted.tolist())
    sizes = [len(y) for _, y in batches]
    assert max(sizes) <= 3 * (2 + 2) and max(sizes) - min(sizes) <= 1  # blocks like a minibatch, none of them a rest
    assert len(batches[0].y.unique()) > 2  # in random order: a block of one class has other statistics


def test_an_augmented_pool_gives_its_examples_as_they_are():
    pool = qs.tasks.ClassTasks(*clusters_as_images(), ["a", "b"], 2, 1, 1, augment=lambda x, generator: x + 1)
    plain = qs.tasks.ClassTasks(*clusters_as_images(), ["a", "b"], 2, 1, 1)
    assert rows_of(pool.pooled().once()) == rows_of(plain.pooled().once())


def clusters_as_images() -> tuple[Tensor, Tensor]:
    return torch.arange(4 * 9, dtype=torch.uint8).reshape(4, 1, 3, 3), torch.tensor([0, 2, 4])


def test_groups_give_each_row_once_also_those_of_groups_too_small_for_a_task():
    tasks = groups()
    assert rows_of(source_of(tasks).once()) == sorted(torch.cat([tasks.x, tasks.y], 1).tolist())


def test_arrays_give_support_and_query_of_each_task():
    tasks = arrays()
    (x, y), (xq, yq) = tasks.episodes
    wanted = torch.cat([torch.cat([x, y], 2).flatten(0, 1), torch.cat([xq, yq], 2).flatten(0, 1)])
    assert rows_of(source_of(tasks).once()) == sorted(wanted.tolist())


@pytest.mark.parametrize("build", [qs.tasks.sinusoid, lambda: clusters()], ids=["sinusoid", "tasks, not their pool"])
def test_a_source_without_an_end_draws_some_tasks(build):
    tasks = source_of(build())
    first, again = (list(tasks.once(torch.Generator().manual_seed(3))) for _ in range(2))
    assert len(first) == DRAWN and rows_of(first) == rows_of(again)
