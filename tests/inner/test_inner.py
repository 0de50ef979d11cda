"""The inner loop's parts: gradients with and without an outer derivative, under every transform that may watch."""

from __future__ import annotations

import math

import pytest
import torch
from problems import assert_close
from torch import Tensor

import quickstudy as qs
from quickstudy import inner
from quickstudy.errors import ConfigError
from quickstudy.inner import descent
from quickstudy.learner import Theta
from quickstudy.nn import parameters

pytestmark = pytest.mark.usefixtures("double")

A, B = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), torch.tensor([0.5, 4.0], dtype=torch.float64)


def cubic(point: Theta) -> Tensor:
    """sum a^3 + (sum a)(sum b): gradient 3 a^2 + sum b, and sum a."""
    return (point["a"] ** 3).sum() + point["a"].sum() * point["b"].sum()


def point() -> Theta:
    return {"a": A.clone(), "b": B.clone()}


WANTED = {"a": 3 * A**2 + B.sum(), "b": A.sum().expand(2).clone()}


# --- gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ["unroll", "first_order"])
@pytest.mark.parametrize("recording", [True, False])
def test_gradient_by_hand(adjoint, recording):
    with torch.set_grad_enabled(recording):
        assert_close(inner.gradient(cubic, point(), adjoint=adjoint), WANTED, 1e-15)


@pytest.mark.parametrize("adjoint", ["unroll", "first_order"])
@pytest.mark.parametrize("recording", [True, False])
def test_gradient_under_vmap(adjoint, recording):
    many = {"a": torch.stack([A, 2 * A]), "b": torch.stack([B, -B])}
    with torch.set_grad_enabled(recording):
        found = torch.func.vmap(lambda p: inner.gradient(cubic, p, adjoint=adjoint))(many)
    wanted = {
        "a": 3 * many["a"] ** 2 + many["b"].sum(1, keepdim=True),
        "b": many["a"].sum(1, keepdim=True).expand(2, 2),
    }
    assert_close(found, wanted, 1e-15)


def test_gradient_is_zero_where_nothing_depends_on_an_entry():
    found = inner.gradient(lambda p: (p["a"] ** 2).sum(), point())
    assert torch.equal(found["b"], torch.zeros(2))


@pytest.mark.parametrize("transform", [False, True], ids=["tape", "vmap"])
def test_gradient_of_a_constant_is_zero(transform):
    """A loss that looks at none of the parameters, such as one of a network whose used part is frozen."""

    def found(x: Tensor) -> Theta:
        return inner.gradient(lambda p: (x * x).sum(), point())

    slopes = torch.func.vmap(found)(torch.ones(1, 2)) if transform else found(torch.ones(2))
    assert not any(value.any() for value in slopes.values())


def test_gradient_in_no_parameters_is_empty():
    assert inner.gradient(lambda p: torch.ones(()), {}) == {}


def test_gradient_carries_the_second_derivative_only_if_asked():
    leaves = {name: value.requires_grad_() for name, value in point().items()}
    slope = inner.gradient(cubic, leaves)
    (second,) = torch.autograd.grad(slope["a"].sum(), leaves["a"])
    assert_close(second, 6 * A, 1e-15)
    assert not any(v.requires_grad for v in inner.gradient(cubic, leaves, adjoint="first_order").values())


def test_gradient_flows_into_what_the_function_closes_over():
    """A learned loss weight, or the frozen body of a head-only inner loop, is reached through the inner gradient."""
    weight = torch.tensor(2.0, requires_grad=True)
    slope = inner.gradient(lambda p: weight * (p["a"] ** 2).sum(), {"a": A.clone()})
    (found,) = torch.autograd.grad(slope["a"].sum(), weight)
    assert float(found) == pytest.approx(float(2 * A.sum()))


def test_gradient_leaves_the_grad_fields_alone():
    leaves = {name: value.requires_grad_() for name, value in point().items()}
    inner.gradient(cubic, leaves)
    assert all(value.grad is None for value in leaves.values())


def test_gradient_under_an_outer_functional_gradient():
    """d/da sum_i (3 a_i^2 + sum b) = 6 a, with torch.func.grad outside."""
    outer = torch.func.grad(lambda a: inner.gradient(cubic, {"a": a, "b": B})["a"].sum())
    assert_close(outer(A), 6 * A, 1e-15)


# --- descend ---------------------------------------------------------------------------------------------------------


def bowl(p: Theta) -> Tensor:
    """0.5 a^2, whose descent is a_k = (1 - lr)^k a_0."""
    return 0.5 * sum((value**2).sum() for value in p.values())  # type: ignore[return-value]


@pytest.mark.parametrize("adjoint", ["unroll", "first_order"])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_descent_of_a_bowl(steps, adjoint):
    found = descent.descend(bowl, {"a": A}, lr=0.3, steps=steps, adjoint=adjoint)
    assert_close(found["a"], 0.7**steps * A, 1e-15)


@pytest.mark.parametrize(("adjoint", "factor"), [("unroll", 0.7**4), ("first_order", 1.0)])
def test_descent_is_differentiated_as_its_adjoint_says(adjoint, factor):
    """Unrolled: prod (1 - lr). First order: phi = theta - constants, whose derivative is one."""
    start = {"a": A.clone().requires_grad_()}
    descent.descend(bowl, start, lr=0.3, steps=4, adjoint=adjoint)["a"].sum().backward()
    assert_close(start["a"].grad, torch.full_like(A, factor), 1e-14)


def test_the_derivative_reaches_what_does_not_move_through_the_steps():
    """a_1 = a - lr (3 a^2 + sum b), so d sum(a_1) / d b = -3 lr for each entry of b."""
    still = {"b": B.clone().requires_grad_()}
    descent.descend(lambda p: cubic(p | still), {"a": A}, lr=0.1, steps=1)["a"].sum().backward()
    assert_close(still["b"].grad, torch.full_like(B, -0.3), 1e-14)


def test_descent_modifies_nothing():
    start = point()
    descent.descend(cubic, start, lr=0.1, steps=3)
    assert torch.equal(start["a"], A) and torch.equal(start["b"], B)
    assert start.keys() == {"a", "b"} and not start["a"].requires_grad


def test_an_unknown_adjoint_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'firstorder'\. Did you mean 'first_order'"):
        descent.descend(bowl, {"a": A}, lr=0.1, steps=1, adjoint="firstorder")
    with pytest.raises(ConfigError, match="unroll, remat, mixed, first_order, implicit"):
        qs.MAML(torch.nn.Linear(1, 1), adjoint="none of these")


@pytest.mark.parametrize("steps", [-1, 1.5])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(ConfigError, match="steps"):
        qs.MAML(torch.nn.Linear(1, 1), steps=steps)


# --- not finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_entry_is_named(bad):
    values = {"good": torch.ones(3), "bad": torch.tensor([0.0, bad]), "worse": torch.tensor(bad)}
    assert parameters.first_non_finite(values) == "bad"


def test_finite_entries_of_any_kind_name_nothing():
    values = {
        "float": torch.tensor(1e300),
        "whole": torch.arange(3),
        "empty": torch.zeros(0),
        "mask": torch.ones(2) > 0,
    }
    assert parameters.first_non_finite(values) is None
