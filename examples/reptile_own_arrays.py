"""Reptile on arrays of your own: meta-train a two-layer perceptron, then learn a new rule from ten examples.

Every task here is a yes-or-no question about ten numbers: is a weighted sum of them above zero? The weights differ from
task to task, but all are mixtures of the same two hidden directions. Many tasks reveal these directions; ten examples
of a single task do not.

python examples/reptile_own_arrays.py --iterations 300      half a minute on a laptop
"""

import numpy as np
import torch
import tyro

import quickstudy as qs

INPUTS, HIDDEN_DIRECTIONS = 10, 2


def draw_examples(rule: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, INPUTS], and their labels [n], which alternate between 0 and 1."""
    x, labels = rng.normal(size=(n, INPUTS)), np.arange(n) % 2
    agrees = (x @ rule > 0) == labels
    return np.where(agrees[:, None], x, -x), labels  # the opposite of a point has the other label


def draw_task(directions: np.ndarray, shots: int, queries: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One task in the form that `from_arrays` takes: make such tasks from your own data. Shots are per class."""
    rule = directions @ rng.normal(size=HIDDEN_DIRECTIONS)
    x, y = draw_examples(rule, 2 * shots, rng)
    new_x, new_y = draw_examples(rule, 2 * queries, rng)
    return {"support": x, "support_labels": y, "query": new_x, "query_labels": new_y}


def main(iterations: int = 300, training_tasks: int = 500, shots: int = 5, episodes: int = 200, seed: int = 0) -> None:
    """Meta-train on tasks made of arrays, compare with training from scratch, and learn one new task.

    Args:
        iterations: Outer updates, with 5 tasks in each.
        training_tasks: Tasks for meta-training.
        shots: Examples per class in a new task.
        episodes: Test tasks.
        seed: Seed of the tasks, the initial weights and the training.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)  # the initial weights
    directions = rng.normal(size=(INPUTS, HIDDEN_DIRECTIONS))

    # Reptile trains on support sets alone, so the training tasks have large ones: 50 shots.
    train = qs.tasks.from_arrays([draw_task(directions, 50, 5, rng) for _ in range(training_tasks)])
    test = qs.tasks.from_arrays([draw_task(directions, shots, 50, rng) for _ in range(200)], split="test")

    # Any module works; torch.nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 2)) is the same network.
    learner = qs.Reptile(qs.nn.mlp(INPUTS, 2, hidden=(50,)), lr=0.05, steps=10)
    trained = qs.train(learner, train, iterations=iterations, meta_batch=5, seed=seed)
    untrained = qs.Trained(learner, learner.init())

    print(f"accuracy on {len(test.episodes.query.y)} tasks that no training has seen")
    print("  from scratch:            ", qs.evaluate(untrained, test, episodes=episodes))
    print("  from scratch, 100 steps: ", qs.evaluate(untrained, test, episodes=episodes, steps=100))
    score = qs.evaluate(trained, test, episodes=episodes, controls=("linear_probe",))
    print("  a linear model:          ", score.controls["linear_probe"])
    print("  after meta-training:     ", score)

    task = draw_task(directions, shots, 50, rng)
    names = np.array(["no", "yes"])  # labels may be strings
    predictor = trained.adapt(task["support"], names[task["support_labels"]])
    answers = np.array(predictor.predict(task["query"]))
    right = (answers == names[task["query_labels"]]).mean()
    print(
        f"\na new task, learned from {len(task['support'])} examples: {right:.0%} of {len(answers)} answers are right"
    )
    for x, answer, chances in zip(task["query"][:3], answers, predictor.predict_proba(task["query"]), strict=False):
        print(f"  {np.round(x[:3], 1)}...  {answer:3}  ({float(chances.max()):.0%} sure)")


if __name__ == "__main__":
    tyro.cli(main)
