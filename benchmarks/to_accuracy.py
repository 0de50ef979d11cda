"""Measures how long meta-training takes to reach an accuracy on validation classes: Omniglot, 5-way 1-shot, 98 %.

    python -m benchmarks.to_accuracy --data FOLDER [--device cuda] [--learners maml protonet] [--target 0.98]

Every `--every` iterations theta is scored on the same 200 episodes of validation classes; the measured time does not
include this. Training stops at the first score that reaches the target, and that theta is scored once on test classes.
Writes results/to-accuracy.json and .md, on a GPU results/to-accuracy-gpu.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import quickstudy as qs
from benchmarks.markdown import table
from benchmarks.provenance import RESULTS, commit
from quickstudy.base import files, seeds
from quickstudy.base.machine import in_words as machine_in_words
from quickstudy.base.machine import machine
from quickstudy.base.words import duration
from quickstudy.engine.choice import choose
from quickstudy.episodes import moved
from quickstudy.trained.trained import Trained

SEED, VALIDATION, TEST = 0, 200, 600
COLUMNS = ("learner", "time to it", "iterations", "ms per iteration", "engine", "validation", "test (95 % CI)")
MOST = 20_000  # largest number of iterations

LEARNERS = {  # name: learner, ways, meta-batch; as in the Omniglot tables, where ProtoNet also trains 20-way
    "maml": (lambda: qs.MAML(qs.nn.conv4(classes=5), lr=0.4, steps=1), 5, 16),
    "protonet": (lambda: qs.ProtoNet(qs.nn.conv4(classes=None, downsample="pool"), ways=20), 20, 4),
}


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    build, ways, meta_batch = LEARNERS[name]
    torch.manual_seed(SEED)
    learner, device = build(), torch.device(args.device)
    theta = {key: value.to(device) for key, value in learner.init().items()}
    train = qs.tasks.omniglot("train", ways=ways, shots=1, queries=15 if ways == 5 else 5, root=args.data)
    val, test = (qs.tasks.omniglot(split, ways=5, shots=1, queries=15, root=args.data) for split in ("val", "test"))
    first = moved(train.sample(meta_batch, seeds.generator(SEED, "train", 0)), device)
    choice = choose.choose_engine(learner, theta, first, args.engine, SEED, MOST)
    optimizer = torch.optim.Adam(list(theta.values()), lr=1e-3)
    sizes = {"iterations": MOST, "meta_batch": meta_batch, "seed": SEED, "engine": choice.engine, "chunk": choice.chunk}
    spent, curve, preprocess = 0.0, [], dict(train.preprocess)
    for step in qs.meta_steps(learner, theta, train, optimizer, **sizes):
        spent += step.sampling + step.computing
        if step.iteration % args.every and step.iteration < MOST:
            continue
        trained = Trained(learner, theta, {}, preprocess)
        score = qs.evaluate(trained, val, episodes=VALIDATION, seed=SEED + 1_000_003)
        curve.append({"iteration": step.iteration, "seconds": spent, "val": score.mean})
        print(f"{name}: iteration {step.iteration}, {duration(spent)}, validation {100 * score.mean:.1f} %", flush=True)
        if score.mean >= args.target:
            break
    score = qs.evaluate(trained, test, episodes=TEST, seed=1)
    return {"learner": name, "engine": choice.engine, "reason": choice.reason, "curve": curve} | {
        "reached": curve[-1]["val"] >= args.target,
        "test": score.to_dict(),
    }


def page(done: dict[str, Any]) -> str:
    about = machine_in_words(done["machine"])
    return "\n".join(
        [
            "# Time to an accuracy",
            "",
            f"`{done['command']}`, seed {SEED}, commit {done['commit']}. Machine: {about}.",
            "",
            f"Omniglot, 5-way 1-shot, until {100 * done['target']:g} % on {VALIDATION} episodes of validation classes. "
            "Time: drawing tasks and training, without validating.",
            "",
            *table(COLUMNS, [cells(row) for row in done["rows"]]),
            "",
        ]
    )


def cells(row: dict[str, Any]) -> list[str]:
    last, score = row["curve"][-1], qs.Score.from_dict(row["test"])
    spent = [duration(last["seconds"]) if row["reached"] else "not reached", str(last["iteration"])]
    spent += [f"{1e3 * last['seconds'] / last['iteration']:.1f}", row["engine"]]
    return [row["learner"], *spent, f"{100 * last['val']:.1f} %", score.in_words()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of Omniglot")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--engine", default="auto", help="auto, vmap, threads, loop or compile")
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument("--target", type=float, default=0.98, help="accuracy on validation classes")
    parser.add_argument("--every", type=int, default=100, help="iterations between validations")
    args = parser.parse_args()
    words = [word if word != str(args.data) else "FOLDER" for word in sys.argv[1:]]
    done: dict[str, Any] = {"command": " ".join(["python -m benchmarks.to_accuracy", *words]), "commit": commit()}
    done |= {"machine": machine(), "target": args.target, "rows": []}
    out = RESULTS / ("to-accuracy.json" if args.device == "cpu" else "to-accuracy-gpu.json")
    for name in args.learners:
        done["rows"].append(run(name, args))
        files.write_json(out, done)
        out.with_suffix(".md").write_text(page(done), encoding="utf-8")
    print(page(done))


if __name__ == "__main__":
    main()
