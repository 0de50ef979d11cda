"""The inner loop: descent, its update rules, and how an outer derivative passes through it."""

from quickstudy.inner.derivatives import gradient, hessian, hessian_vector_product, value_and_gradient
from quickstudy.inner.descent import (
    ADJOINTS,
    ALONG_THE_PATH,
    adjoint_of,
    check_adjoint,
    check_steps,
    descend,
    trajectory,
)
from quickstudy.inner.implicit import conjugate_gradient, implicit_derivative
from quickstudy.inner.rules import RULES, Rule, adam, find_rule, momentum, sgd

__all__ = [
    "ADJOINTS",
    "ALONG_THE_PATH",
    "RULES",
    "Rule",
    "adam",
    "adjoint_of",
    "check_adjoint",
    "check_steps",
    "conjugate_gradient",
    "descend",
    "find_rule",
    "gradient",
    "hessian",
    "hessian_vector_product",
    "implicit_derivative",
    "momentum",
    "sgd",
    "trajectory",
    "value_and_gradient",
]
