"""Writes the tables of the speed benchmark, for the terminal and as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.markdown import table
from benchmarks.speed.growth import fastest_peer

COLUMNS = ("contestant", "way", "ms", "quartiles", "ratio", "floors", "share", "peak MB", "above import MB")
ON_GPU = ("launches",)
SHORT = 40  # largest number of characters of a reason in a table
SUMMARY = ("case", "quickstudy's way", "ms", "regret", "fastest peer", "its ratio", "to ours without compile")
SUMMARY += ("fastest loop over tasks", "its ratio", "to ours without compile", "its peak MB over ours without compile")
STEPS = ("contestant", "way", "peak MB at {0} steps", "at {1}", "times", "above import MB at {0}", "at {1}")
STEPS += ("s at {1}", "over unroll", "error in float64")
CURVES = ("axis", "value", "quickstudy ms", "way", "fastest peer", "its ms", "its ratio", "floor ms")
LEGEND = (
    "One meta-gradient in float32. Ratio: a contestant's time over Quickstudy's; above 1 is slower than Quickstudy. "
    "Quickstudy runs in the way that it chooses itself for a training of 60,000 iterations; regret: the time of that "
    "training, choosing and compiling included, over that with the best fixed way of Quickstudy. WRONG: its gradient "
    "is not that of the loop in float64, and it does not race (compile is checked in float32, within ten times the "
    "loop's own rounding). Floors: its time over the floor's, which is as many forward and backward passes of plain "
    "training with all examples in one batch. Share: matrix products and convolutions that the loop needs (the floor: "
    "its own), counted by torch (fused LSTM kernels are not), at the machine's measured rate of float32 matrix "
    "products, over the time taken. Peak MB: resident memory (on a GPU: allocated) of a fresh process that computes "
    "three meta-gradients; above import: over its peak when it had imported everything and built the problem (compile: "
    "before it compiled). Warm-up: the first gradient in such a process, with an empty compile cache."
)


# --- one case --------------------------------------------------------------------------------------------------------


def terminal(case: dict[str, Any]) -> Table:
    """The table of one case for the terminal, without quartiles and share, so that it fits."""
    kept = [name for name in columns(case) if name not in ("quartiles", "share")]
    table = Table(*kept)
    for entry in case["contestants"]:
        cells = dict(zip(columns(case), row(entry, columns(case)), strict=True))
        table.add_row(*(cells[name] for name in kept))
    return table


def columns(case: dict[str, Any]) -> tuple[str, ...]:
    return COLUMNS + (ON_GPU if any(entry["launches"] for entry in case["contestants"]) else ())


def row(entry: dict[str, Any], columns: Sequence[str] = COLUMNS) -> list[str]:
    if not entry["median_ms"]:
        reason = entry["reason"] if len(entry["reason"]) <= SHORT else "failed, see below"
        return [entry["name"], reason, *["-"] * (len(columns) - 2)]
    low, high = entry["quartiles_ms"]
    cells = [entry["name"], entry["way"], f"{entry['median_ms']:.2f}", f"{low:.2f} to {high:.2f}"]
    cells += [number(entry[key], ".2f") for key in ("ratio", "floors")]
    cells += [f"{100 * entry['share']:.1f} %" if entry["share"] else "-"]
    memory = entry["memory"] or {}
    cells += [number(memory.get(key), ".0f") for key in ("peak_mb", "above_mb")]
    return cells + ([number(entry["launches"], "d")] if "launches" in columns else [])


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def notes(case: dict[str, Any]) -> list[str]:
    """Sentences about one case: the times of Quickstudy's ways, its regret, failed ways, and the time of compiling."""
    named = {entry["name"]: entry for entry in case["contestants"]}
    ways = ", ".join(f"{way} {ms:.2f} ms" for way, ms in case["ways_ms"].items())
    regret = number(case["regret"], ".2f")
    sentences = [f"quickstudy's ways in the race: {ways}. Regret of the automatic choice: {regret}."]
    for name, tried in case["tried"].items():
        failed = {way: text.rstrip(".") for way, text in tried["problems"].items() if text != "not installed"}
        sentences += [f"{name}, {way}: {text}." for way, text in failed.items()]
    compiled = named["quickstudy with compile"]["memory"]
    sentences += [f"Compile's warm-up: {compiled['warm_up_s']:.1f} s."] if compiled else []
    return sentences + [f"{e['name']}, memory: {e['no_memory']}." for e in case["contestants"] if e["no_memory"]]


# --- all cases -------------------------------------------------------------------------------------------------------


def markdown(done: dict[str, Any]) -> str:
    """The report as a page of tables."""
    shown = [case for case in done["cases"] if case["shown"]]
    lines = ["# Speed and memory of one meta-gradient", "", header(done), "", done["legend"]]
    lines += ["", *(f"{text}" for text in done["peers"])]
    lines += ["", "![Ratios, and cost against tasks, steps and width](speed.svg)", "", "## In short", ""]
    lines += [*table(SUMMARY, [summary(case) for case in shown]), "", verdict(shown)]
    for case in shown:
        lines += ["", f"## {case['name']}", "", f"{case['description']}; {case['rounds']} rounds.", ""]
        lines += table(columns(case), [row(entry, columns(case)) for entry in case["contestants"]])
        lines += [line for note in notes(case) for line in ("", note)]
    lines += stepping(done["inner_steps"]) if done["inner_steps"] else []
    lines += ["", "## Growth", "", "Sinusoids, one thing at a time around one case; without compile.", ""]
    lines += table(CURVES, [curve(point) for point in done["growth"]])
    return "\n".join(lines) + "\n"


def header(done: dict[str, Any]) -> str:
    machine, versions = (", ".join(f"{k} {v}" for k, v in done[part].items() if v) for part in ("machine", "versions"))
    return (
        f"`{done['command']}`, seed {done['seed']}, {done['date']}, commit {done['commit']}. Machine: {machine}; "
        f"matrix products of {done['matrix_rate'] / 1e9:.0f} billion operations a second. Versions: {versions}."
        + elsewhere(done)
    )


def elsewhere(done: dict[str, Any]) -> str:
    """A sentence about the parts that were measured at other commits, with their commands."""
    parts = {case["name"]: case for case in done["cases"]}
    parts |= {"memory of inner steps": done["inner_steps"]} if done["inner_steps"] else {}
    others: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part["commit"] != done["commit"]:
            others.setdefault(f" By `{part['command']}` at commit {part['commit']}", []).append(name)
    return "".join(f"{run}: {', '.join(names)}." for run, names in others.items())


def summary(case: dict[str, Any]) -> list[str]:
    """A row of the summary, with the fastest peer, and the fastest of the peers that loop over tasks themselves."""
    ours, plain = case["contestants"][:2]
    cells = [case["name"], ours["way"], number(ours["median_ms"], ".2f"), number(case["regret"], ".2f")]
    for peer in (fastest_peer(case), fastest_peer(case, looping=True)):
        beside = peer and plain["median_ms"] and peer["median_ms"] / plain["median_ms"]
        cells += [peer["name"], f"{peer['ratio']:.2f}", number(beside, ".2f")] if peer else ["-", "-", "-"]
    memory = [entry and entry["memory"] and entry["memory"]["peak_mb"] for entry in (fastest_peer(case), plain)]
    return [*cells, f"{memory[0] / memory[1]:.2f}" if all(memory) else "-"]


def verdict(cases: Sequence[dict[str, Any]]) -> str:
    """The largest regret, and the number of cases in which Quickstudy is faster than the fastest peer, in words."""
    regrets = [(case["regret"], case["name"]) for case in cases if case["regret"]]
    ratios = [peer["ratio"] for peer in map(fastest_peer, cases) if peer and peer["ratio"]]
    largest = f"Largest regret of the automatic choice: {max(regrets)[0]:.2f} ({max(regrets)[1]}). " if regrets else ""
    faster = sum(ratio > 1 for ratio in ratios)
    return f"{largest}Faster than the fastest peer in {faster} of {len(ratios)} cases." if ratios else largest.strip()


def stepping(found: dict[str, Any]) -> list[str]:
    few, many = found["steps"]
    heads = [text.format(few, many) for text in STEPS]
    lines = ["", f"## Memory of {many} inner steps against {few}", "", f"{found['description']}.", ""]
    unroll = {one["name"]: one.get("seconds") for one in found["rows"] if one["way"] == "unroll"}
    return lines + table(heads, [step(one, unroll.get(one["name"])) for one in found["rows"]])


def step(one: dict[str, Any], unroll: float | None) -> list[str]:
    if "problem" in one:
        return [one["name"], one["way"], one["problem"], *["-"] * (len(STEPS) - 3)]
    few, many = one["few"], one["many"]
    cells = [f"{few['peak_mb']:.0f}", f"{many['peak_mb']:.0f}", f"{many['peak_mb'] / few['peak_mb']:.2f}"]
    cells += [f"{few['above_mb']:.0f}", f"{many['above_mb']:.0f}"]
    over = number(unroll and one["seconds"] / unroll, ".2f")
    return [one["name"], one["way"], *cells, f"{one['seconds']:.2f}", over, f"{one['error']:.0e}"]


def curve(point: dict[str, Any]) -> list[str]:
    ours, peer = point["quickstudy_ms"], point["peer_ms"]
    cells = [point["axis"], str(point["value"]), number(ours, ".2f"), point["way"] or "-", point["peer"] or "-"]
    return [*cells, number(peer, ".2f"), number(peer and ours and peer / ours, ".2f"), number(point["floor_ms"], ".2f")]
