"""The inner loop: descent, its update rules, and how an outer derivative passes through it."""

from quickstudy.inner.adjoints import ADJOINTS, ALONG_THE_PATH, Adjoint, adjoint_of, find_adjoint
from quickstudy.inner.derivatives import gradient, hessian, hessian_vector_product, value_and_gradient
from quickstudy.inner.descent import check_inner_loop, check_steps, descend, trajectory
from quickstudy.inner.implicit import conjugate_gradient, implicit_derivative
from quickstudy.inner.rules import MAKERS, RULES, Rule, adam, find_rule, make_rule, momentum, sgd

check_adjoint = find_adjoint  # as it was called where only its error counts

__all__ = [
    "ADJOINTS",
    "ALONG_THE_PATH",
    "MAKERS",
    "RULES",
    "Adjoint",
    "Rule",
    "adam",
    "adjoint_of",
    "check_adjoint",
    "check_inner_loop",
    "check_steps",
    "conjugate_gradient",
    "descend",
    "find_adjoint",
    "find_rule",
    "gradient",
    "hessian",
    "hessian_vector_product",
    "implicit_derivative",
    "make_rule",
    "momentum",
    "sgd",
    "trajectory",
    "value_and_gradient",
]
