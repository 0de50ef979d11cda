"""Writes the measured numbers into the learners' pages: the section "Measured" at the end of docs/learners/NAME.md.

    python -m benchmarks.pages        after benchmarks.cost (both families) and the tables of benchmarks.reproduce

The section is made from the result files, so the numbers on a page always agree with them.
"""

from __future__ import annotations

from typing import Any

import quickstudy as qs
from benchmarks.provenance import RESULTS, ROOT
from benchmarks.reproduce import rows
from quickstudy.base import files
from quickstudy.evaluation.score import Score

HEADING = "## Measured"
PAGES = ROOT / "docs" / "learners"
STEPS = (1, 5, 10)  # inner steps of the sinusoid table that a page shows


def measured(learner: str) -> str:
    """The section for one learner; empty where nothing was measured."""
    if learner in {entry.learner for entry in rows.FAMILY}:
        parts = [costs(learner), omniglot(learner), sinusoid(learner)]
    else:
        parts = [costs_beside_protonet(learner), compared(learner, "metric"), compared(learner, "memory")]
    said = [part for part in parts if part]
    return "\n\n".join([HEADING, *said]) + "\n" if said else ""


def costs(learner: str) -> str:
    found = {(row["learner"], row["shots"]): row for row in files.read_json(RESULTS / "cost.json")["rows"]}
    sizes = []
    for shots in (1, 5):
        row, maml = found[learner, shots], found["maml", shots]
        each = 1e3 * row["seconds"] / row["tasks"]
        kept, time = row["memory"] / 2**20, each / (1e3 * maml["seconds"] / maml["tasks"])
        beside = f" ({time:.2f} and {row['memory'] / maml['memory']:.2f} times MAML)" if learner != "maml" else ""
        sizes.append(f"at {shots} shot{'s' if shots > 1 else ''} {each:.0f} ms and {kept:.1f} MiB{beside}")
    return (
        f"Time of a meta-gradient per task on 2 cores, and memory held for derivatives, Conv4-64, 5-way: {sizes[0]}; "
        f"{sizes[1]} ([all](../../benchmarks/results/cost.md))."
    )


def omniglot(learner: str) -> str:
    """The learner's results on Omniglot at 1 and 5 shots, one line per protocol."""
    result = files.read_json(RESULTS / "omniglot-gradient.json")
    named = {row["name"]: row for row in result["rows"]}
    lines = ["| Omniglot | protocol | accuracy | against MAML | published |", "|---|---|---|---|---|"]
    for shots in (1, 5):
        row = named[f"{learner}-{shots}shot"]
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            lines.append(f"| 5-way {shots}-shot | {_line(score, row, result['paired'])} |")
    return "\n".join(lines) + (
        "\n\nEach row is 10 minutes of one core, 600 test episodes of unseen characters "
        "([protocol, command, machine](../../benchmarks/results/omniglot-gradient.md))."
    )


def costs_beside_protonet(learner: str) -> str:
    """The learner's costs against ProtoNet's, one line per training; empty where they were not measured."""
    path = RESULTS / "cost-others.json"
    names = {row.name for row in [*rows.metric_rows(), *rows.memory_rows()] if row.learner == learner}
    found = [row for row in files.read_json(path)["rows"] if row["row"] in names] if path.exists() else []
    if not found:
        return ""
    lines = ["| trained on | ms per task | memory (MiB) | ms to adapt and answer |", "|---|---|---|---|"]
    for row in found:
        ways, shots, queries = row["sizes"]
        bar, each = row["beside"], 1e3 * row["seconds"] / row["tasks"]
        cells = [f"{each:.1f} ({row['seconds'] / bar['seconds']:.2f}x)"]
        cells += [f"{row['memory'] / 2**20:.1f} ({row['memory'] / bar['memory']:.2f}x)"]
        cells += [f"{1e3 * row['answer']:.1f} ({row['answer'] / bar['answer']:.2f}x)"]
        lines.append(f"| {ways}-way {shots}-shot, {queries} queries | " + " | ".join(cells) + " |")
    return (
        "A training iteration per task, memory held for derivatives, and one task learned and answered, on 2 cores; in "
        "brackets against ProtoNet at the same sizes ([all](../../benchmarks/results/cost-others.md)).\n\n"
    ) + "\n".join(lines)


def compared(learner: str, family: str) -> str:
    """The learner's rows in a family's table on Omniglot; empty where it has none."""
    path = RESULTS / f"omniglot-{family}.json"
    result = files.read_json(path) if path.exists() else {"rows": []}
    found = [row for row in result["rows"] if row["settings"]["learner"] == learner]
    if not found:
        return ""
    against = " against ProtoNet |" if family == "metric" else ""
    lines = [
        f"| Omniglot | protocol | accuracy |{against} published |",
        "|---|---|---|---|" + ("---|" if against else ""),
    ]
    for row in found:
        for score in (Score.from_dict(plain) for test in row["scores"] for plain in test):
            cells = _line(score, row, result["paired"]).split(" | ")
            lines.append(f"| {row['name']} | " + " | ".join(cells if against else cells[:2] + cells[3:]) + " |")
    seen = [f"{row['name']}: {_by_instance(row['instances'])}" for row in found if row.get("instances")]
    minutes = sorted({round(row["timing"]["processor"] / 60) for row in found})
    spent = f"{' to '.join(map(str, dict.fromkeys((minutes[0], minutes[-1]))))} minutes of one core"
    under = f"600 test episodes of unseen characters; {spent} of training"
    link = f"([protocol, command, machine](../../benchmarks/results/omniglot-{family}.md))"
    published = [text for name, text in rows.PUBLISHED_UNDER.items() if name.lower() == learner and against]
    return "\n".join([*lines, "", f"{under} {link}.", *published, *(["", *seen] if seen else [])])


def _by_instance(plain: dict[str, Any]) -> str:
    found = qs.InstanceAccuracy.from_dict(plain)
    return (
        ", ".join(f"{100 * found[n].mean:.1f} % at instance {n}" for n in found.instances) + " of a class in a stream."
    )


def _line(score: Score, row: dict[str, Any], paired: list[dict[str, Any]]) -> str:
    protocol = score.protocol.describe()
    difference = next((d["text"] for d in paired if (d["row"], d["protocol"]) == (row["name"], protocol)), "")
    shown = score.in_words()
    return " | ".join((protocol, shown, difference.split(" (")[0], row["published"]))


def sinusoid(learner: str) -> str:
    """The learner's errors on sinusoids after a few inner steps; empty for learners without regression."""
    if learner not in rows.SINUSOID_FIELDS:
        return ""
    named = {row["name"]: row for row in files.read_json(RESULTS / "sinusoid-gradient.json")["rows"]}
    head = " | ".join(f"{k} inner step{'s' if k > 1 else ''}" for k in STEPS)
    lines = [f"| sinusoids, mean squared error | {head} |", "|---|" + "---|" * len(STEPS)]
    for shots in (5, 10, 20):
        found = {s["protocol"]["steps"]: s for test in named[f"{learner}-{shots}shot"]["scores"] for s in test}
        cells = [_error(found.get(k)) for k in STEPS]
        lines.append(f"| {shots} shots | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        "\n\nAfter half a minute of training on one core ([all steps](../../benchmarks/results/sinusoid-gradient.md))."
    )


def _error(score: dict[str, Any] | None) -> str:
    return "diverges" if score is None else f"{score['mean']:.3g} ± {score['interval']:.2g}"


def main() -> None:
    for path in sorted(PAGES.glob("*.md")):
        said = measured(path.stem)
        if said:
            kept = path.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
            path.write_text(f"{kept}\n\n{said}", encoding="utf-8")
            print(f"written: docs/learners/{path.name}")


if __name__ == "__main__":
    main()
