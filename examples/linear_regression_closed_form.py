"""MAML on linear regression: compares the meta-gradient with one that is derived by hand.

With the loss L(w) = |X w - y|^2 / n the gradient is 2 X^T (X w - y) / n, and the Hessian is H = 2 X^T X / n for all w.
An inner step w <- w - lr * grad L(w) is then affine in w with the matrix I - lr H, so by the chain rule

    meta-gradient of MAML      (I - lr H)^K grad L_Q(phi_K)
    of first-order MAML        grad L_Q(phi_K)

python examples/linear_regression_closed_form.py --steps 5 --lr 0.1      exits with 1 if they disagree
"""

import sys

import torch
import tyro
from torch import Tensor

import quickstudy as qs

TOLERANCE = 1e-12  # relative to the largest entry; float64 rounds at 1e-16


def slope(w: Tensor, data: qs.Batch) -> Tensor:
    """The gradient of the mean squared error at w [inputs, 1]."""
    return 2 * data.x.T @ (data.x @ w - data.y) / len(data.x)


def by_hand(w: Tensor, task: qs.Episode, lr: float, steps: int, first_order: bool) -> Tensor:
    phi = w
    for _ in range(steps):
        phi = phi - lr * slope(phi, task.support)
    x = task.support.x
    shrink = torch.eye(len(w)).to(x) - lr * 2 * x.T @ x / len(x)  # I - lr H
    return slope(phi, task.query) if first_order else shrink.matrix_power(steps) @ slope(phi, task.query)


def by_quickstudy(model: torch.nn.Module, task: qs.Episode, lr: float, steps: int, first_order: bool) -> Tensor:
    learner = qs.MAML(model, loss=qs.mse_loss, lr=lr, steps=steps, first_order=first_order)
    theta = {name: value.requires_grad_() for name, value in learner.init().items()}
    (gradient,) = torch.autograd.grad(learner.meta_loss(theta, task), [theta["weight"]])
    return gradient.T  # torch keeps the weight as [outputs, inputs]


def main(steps: int = 5, lr: float = 0.1, inputs: int = 3, shots: int = 10, queries: int = 10, seed: int = 0) -> None:
    """Compare meta-gradients with their closed forms on one random task.

    Args:
        steps: Inner steps K.
        lr: Inner learning rate.
        inputs: Numbers in one input.
        shots: Support examples, n above.
        queries: Query examples.
        seed: Seed of the task and the initial weights.
    """
    torch.manual_seed(seed)
    x, y = torch.randn(shots + queries, inputs).double(), torch.randn(shots + queries, 1).double()
    task = qs.Episode(qs.Batch(x[:shots], y[:shots]), qs.Batch(x[shots:], y[shots:]))
    model = torch.nn.Linear(inputs, 1, bias=False).double()
    print(f"linear regression from {inputs} inputs, {shots} shots; {steps} inner steps at lr {lr}; float64\n")
    worst = 0.0
    for name, first_order in (("MAML", False), ("first-order MAML", True)):
        ours = by_quickstudy(model, task, lr, steps, first_order)
        exact = by_hand(model.weight.detach().T, task, lr, steps, first_order)
        print(f"{name}\n{'quickstudy':>24}{'closed form':>24}{'difference':>14}")
        for a, b in zip(ours.flatten().tolist(), exact.flatten().tolist(), strict=True):
            print(f"{a:24.16f}{b:24.16f}{abs(a - b):14.1e}")
        worst = max(worst, float((ours - exact).abs().max() / exact.abs().max()))
    print(f"\nlargest difference, as a share of the largest entry: {worst:.1e}")
    if not worst <= TOLERANCE:  # `not`, because NaN must fail too
        sys.exit(f"they disagree by more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    tyro.cli(main)
