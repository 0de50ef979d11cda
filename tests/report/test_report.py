"""The report says what was measured, in words and numbers, and the page stands on its own."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import quickstudy as qs
from quickstudy.base import files, seeds
from quickstudy.base.figures import Series, lines, save, with_legend
from quickstudy.cli import main
from quickstudy.errors import FileFormatError, QuickstudyError, RunError
from quickstudy.evaluation.controls import CONTROLS
from quickstudy.evaluation.score import Score
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.experiments.run import read_run
from quickstudy.report import words
from quickstudy.report.exports import folder_of
from quickstudy.report.scale import Scale
from quickstudy.report.sections import served
from quickstudy.report.sections.examples import LETTERS, SHOWN, letter
from quickstudy.report.thumbnails import thumbnail
from quickstudy.report.writing import write_report

ODD = "<b>$x^{2"  # a folder's name, which is neither HTML nor mathematics
HOSTILE = '<script>alert("1")</script> & $x^{2'
VOID = {"meta", "img", "br", "link", "input", "hr"}
EPISODES = 12  # even, and enough for an interval
OTHERS: dict[str, Any] = {"steps": 7, "ensemble": 3, "normalisation": "running"}
QUIET: dict[str, Any] = {"engine": "loop", "progress": False}


# --- runs ------------------------------------------------------------------------------------------------------------


def images(split: str, ways: int = 3, queries: int = 4, name: str = "blobs") -> Any:
    """Tasks of noisy copies of random drawings, one per class: easy to tell apart."""
    g = torch.Generator().manual_seed(len(split))
    tasks = []
    for _ in range(6):
        ink = (torch.rand(ways, 1, 28, 28, generator=g) > 0.8).float()
        noisy = [ink.repeat_interleave(k, 0) * torch.rand(ways * k, 1, 28, 28, generator=g) for k in (1, queries)]
        labels = [torch.arange(ways).repeat_interleave(k) for k in (1, queries)]
        tasks.append(dict(zip(("support", "query", "support_labels", "query_labels"), noisy + labels, strict=True)))
    return qs.tasks.from_arrays(tasks, split=split, name=name)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[Path]:
    """Three evaluated runs: image classification twice, once in a folder of hostile name, and regression."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as conftest does for each test, which is after this fixture
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    learner = qs.ProtoNet(qs.nn.conv4(1, filters=4), ways=3)
    val = {"val": images("val"), "val_episodes": 4, "val_every": 2}
    for name, seed, controls in (("images", 0, None), (ODD, 1, [])):
        trained = qs.train(
            learner, images("train"), iterations=5, meta_batch=2, seed=seed, out=root / name, **val, **QUIET
        )
        evaluate_run(root / name, trained, images("test"), episodes=EPISODES, names=controls, **QUIET)
    train, test = (qs.tasks.sinusoid(split, shots=5, queries=5) for split in ("train", "test"))
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01, steps=1)
    trained = qs.train(learner, train, iterations=5, meta_batch=4, out=root / "sine", **QUIET)
    evaluate_run(root / "sine", trained, test, episodes=EPISODES, **QUIET)
    yield root
    torch.set_num_threads(threads)


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """Copies of the runs, to be broken at will."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def scores_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text())


def change_scores(run: Path, change: Any) -> None:
    plain = scores_of(run)
    change(plain)
    (run / "scores.json").write_text(json.dumps(plain))


# --- reading a page --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The visible text of a page and its elements; fails on markup that does not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def report(*folders: Path) -> Page:
    return Page(write_report(list(folders)))


@pytest.fixture(scope="module")
def pages(made: Path) -> dict[str, Page]:
    """The pages of the unchanged runs, written once."""
    compared = report(made / "images", made / "sine")
    return {name: Page(made / name / "report.html") for name in ("images", "sine")} | {"compared": compared}


# --- one run ---------------------------------------------------------------------------------------------------------


def as_percent(score: dict[str, Any]) -> str:
    """A plain score as the page has to write it: percent, its digit spelled out from the episodes' own values."""
    low, mean, high = 100 * score["low"], 100 * np.mean(score["values"]), 100 * score["high"]
    assert (mean - low) / 1.5 < high - mean  # symmetric enough for one half width
    return f"{mean:.1f} % ± {(high - low) / 2:.1f}"


def test_headline_is_the_score_with_its_interval_and_meaning(pages, made):
    page, score = pages["images"], scores_of(made / "images")["scores"][0]
    assert 0.4 < np.mean(score["values"]) < 0.99 and score["interval"] > 0.01  # no number that looks like another
    assert page.text.count(as_percent(score)) >= 3  # headline, protocol, controls
    assert page.text.split("Quickstudy report · run")[1].split("of examples of")[0].strip().endswith(as_percent(score))
    assert "of examples of unseen classes named right, from 1 example of each class" in page.text
    assert "guessing among 3 gives 33 %" in page.text
    assert "Transductive: the queries of a task were normalised together" in page.text


def test_both_scores_of_a_transductive_learner_stand_in_the_protocol(pages, made):
    page, plain = pages["images"], scores_of(made / "images")
    assert len(plain["scores"]) == 2
    for score in plain["scores"]:
        assert as_percent(score) in page.text
    assert "statistics that normalise queries batch support" in page.text


@pytest.mark.parametrize("name", ["images", "sine"])
def test_every_control_is_named_with_its_paired_difference(pages, made, name):
    page, plain = pages[name], scores_of(made / name)["scores"][0]
    score = qs.Score.from_dict(plain)
    assert {"shuffled_labels", "linear_probe", "from_scratch"} <= set(plain["controls"]) <= set(CONTROLS)
    for control in score.controls:
        assert control in page.text
        by_hand = float((score.values - score.controls[control].values).mean())
        size = f"{100 * abs(by_hand):.1f} points" if name == "images" else f"{abs(by_hand):.3g}"
        assert f"difference {'+' if by_hand >= 0 else '−'}{size} ± " in page.text
        difference = qs.compare(score, score.controls[control], allow=("transductive",))
        assert f"difference {words.signed(difference)}" in page.text


def test_a_control_that_is_not_beaten_is_called_so(runs):
    def tie(plain):
        plain["scores"][0]["values"] = [0.9] * EPISODES
        for name, value in (("linear_probe", 0.9), ("from_scratch", 0.95), ("shuffled_labels", 0.3)):
            plain["scores"][0]["controls"][name]["values"] = [value, *[value + 0.001] * (EPISODES - 1)]

    change_scores(runs / "images", tie)
    page = report(runs / "images")
    assert "✓ The support answers matter: with shuffled support labels" in page.text
    assert "✗ Not beaten: from scratch is better than ProtoNet." in page.text
    assert "Until every control is, the score does not show that meta-learning helped." in page.text
    change_scores(
        runs / "images",
        lambda p: p["scores"][0]["controls"]["linear_probe"].update(values=[0.5, 1.3] * (EPISODES // 2)),
    )
    assert "✗ Not beaten: the interval of the difference holds zero." in report(runs / "images").text


def test_for_errors_the_smaller_one_wins(runs):
    def better(plain):
        plain["scores"][0]["values"] = [0.25, 0.251] * (EPISODES // 2)
        plain["scores"][0]["controls"]["zero_steps"]["values"] = [3.0] * EPISODES

    change_scores(runs / "sine", better)
    page = report(runs / "sine")
    assert "Adaptation matters: without inner steps 3." in page.text and "difference −2.75" in page.text
    assert "the typical miss is 0.5 in the units of y" in page.text and "chance" not in page.text


MISLEADING = {
    "training tasks": "nothing shows that these tasks were not trained on",
    "chance": "Not shown to be better than guessing: the interval reaches down to chance",
    "one task": "One test task has no interval: nothing follows from this number",
}


@pytest.mark.parametrize("why", MISLEADING)
def test_what_may_mislead_is_said_beside_the_number(runs, pages, why):
    def change(plain):
        score = plain["scores"][0]
        score["controls"], plain["scores"] = {}, [score]
        if why == "training tasks":
            score["protocol"]["split"] = "train"
        if why == "chance":
            score["values"] = [0.25, 0.5] * (EPISODES // 2)
        if why == "one task":
            score["values"], score["protocol"]["episodes"] = [0.8], 1

    change_scores(runs / "images", change)
    page = report(runs / "images")
    assert [text for text in MISLEADING.values() if text in page.text] == [MISLEADING[why]]
    assert not [text for text in MISLEADING.values() if text in pages["images"].text]


def test_an_interval_that_does_not_exist_is_an_empty_cell(runs):
    def alone(plain):
        score = plain["scores"][0]
        score["values"], score["controls"], plain["scores"] = [0.8], {}, [score]
        score["protocol"]["episodes"] = 1

    change_scores(runs / "images", alone)
    page = write_report([runs / "images"], csv=True)
    head, row = (folder_of(page) / "scores.csv").read_text().splitlines()[:2]
    cells = dict(zip(head.split(","), row.split(","), strict=True))
    assert cells["mean"] == "0.8" and cells["interval"] == ""


def timed(run: Path) -> Page:
    """The page of a run whose training took 10 s: 1 to draw episodes, 5 to compute, 2 to choose, 2 for the rest."""
    plain = json.loads((run / "timing.json").read_text())
    plain |= {"sampling": 1.0, "computing": 5.0, "choosing": 2.0, "total": 10.0}
    (run / "timing.json").write_text(json.dumps(plain))
    return report(run)


def test_the_parts_of_the_training_time_are_its_shares(runs):
    page = timed(runs / "sine")
    for part in (
        "computing meta-gradients and updates, 50 %",
        "choosing the engine, 20 %",
        "drawing episodes, 10 %",
        "validation, logging, checkpoints, 20 %",
    ):
        assert part in page.text


def test_the_sentence_on_the_training_time_says_what_its_parts_say(runs):
    assert "10 % of it for drawing episodes and 50 % for computing" in timed(runs / "sine").text


def test_settings_training_and_timing_are_told(pages):
    page = pages["sine"].text
    assert "MAML was meta-trained for 5 iterations with 4 tasks each: 20 tasks of sinusoid, split “train”" in page
    for row in ("inner learning rate lr 0.01", "iterations 5", "meta_batch 4", "seed 0", "mlp(inputs=1, outputs=1"):
        assert row in page
    assert "engine loop (as asked)" in page and "drawing episodes, " in page and "for its 5 queries" in page


def test_curves_carry_captions_that_conclude(pages, made):
    page = pages["images"].text
    best = max(v for line in read_run(made / "images").metrics if (v := line.get("val")) is not None)
    assert f"Best validation {100 * best:.1f} % at iteration" in page
    steps = {point["steps"]: point["mean"] for point in scores_of(made / "sine")["steps"]}
    page = pages["sine"].text
    assert f"{steps[0]:.3g} after 0 inner steps" in page and f"{steps[1]:.3g} after the 1 of training (ringed)" in page
    assert "There was no validation" in page


def test_frames_and_marks_follow_the_answers(pages, made):
    page, examples = pages["images"], read_run(made / "images").examples
    answers = torch.cat([e.output.argmax(1) for e in examples])
    truths = torch.cat([e.query_y for e in examples])
    classes = [attributes.get("class") for attributes in page.all("figure")]
    assert classes.count("query wrong") == int((answers != truths).sum())
    assert classes.count("query") == int((answers == truths).sum())
    alts = [attributes["alt"] for attributes in page.all("img")]
    told = [(a.split()[3].strip(","), a.split()[5].strip(":")) for a in alts if a and a.startswith("query")]
    assert told == [(LETTERS[t], LETTERS[a]) for t, a in zip(truths.tolist(), answers.tolist(), strict=True)]


def test_pictures_are_limited_so_that_pages_stay_small(tmp_path):
    tasks = images("test", ways=12, queries=7)
    learner = qs.NearestCentroid(12)
    trained = qs.train(learner, tasks, iterations=1, out=tmp_path / "many", **QUIET)
    evaluate_run(tmp_path / "many", trained, tasks, episodes=3, names=[], **QUIET)
    page = report(tmp_path / "many")
    assert len(page.all("img")) == 3 * 10 * (1 + SHOWN) and len(page.source) < 1_500_000
    assert "nothing was trained" in page.text and "Measured without controls" in page.text


def test_thumbnails_show_the_pixels():
    image = torch.linspace(0, 1, 16).reshape(1, 4, 4)

    def pixels(drawing: bool) -> np.ndarray:
        data = base64.b64decode(thumbnail(image, 0.0, 1.0, drawing).removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(data)))

    expected = (255 * image[0]).round().byte().numpy()
    assert np.array_equal(pixels(False), expected)
    assert np.abs(pixels(True).astype(int) - (255 - expected.astype(int))).max() <= 1  # ink becomes dark on paper


def test_regression_is_drawn_and_other_data_is_tabled(pages, tmp_path):
    page = pages["sine"]
    assert "after 1 inner step, as tested" in page.text and "not adapted" in page.text
    drawn = [a["aria-label"] for a in page.all("div") if (a.get("aria-label") or "").startswith("Adapted function")]
    assert len(drawn) == 3
    vectors = qs.tasks.from_arrays(
        [{"support": np.eye(3), "support_labels": [0, 1, 2], "query": np.eye(3), "query_labels": [0, 1, 2]}],
        split="test",
    )
    trained = qs.train(qs.NearestCentroid(3), vectors, iterations=1, out=tmp_path / "vectors", **QUIET)
    evaluate_run(tmp_path / "vectors", trained, vectors, episodes=1, names=[], **QUIET)
    page = report(tmp_path / "vectors")
    assert "query truth answer probability 1 A ✓ A" in page.text
    assert "100.0 % (one task: no interval)" in page.text and "nothing follows from this number" in page.text
    assert letter(30, 40) == "31"


# --- the page itself -------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_outside(pages):
    for page in pages.values():
        assert not re.search(r"https?://|@import|javascript:", page.source)
        assert not page.all("script") and not page.all("link") and not page.all("iframe")
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")], tag
            assert (attributes.get("src") or "data:image/").startswith("data:image/")
            assert re.match(r"#|[\w%/.]+report\.html$", attributes.get("href") or "#")


def test_the_page_is_accessible_in_its_basics(pages):
    for page in pages.values():
        assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
        assert any("width=device-width" in (m.get("content") or "") for m in page.all("meta"))
        assert all(image.get("alt") for image in page.all("img"))
        assert all(a["aria-label"] for _, a in page.elements if a.get("role") == "img")
        assert "prefers-color-scheme: dark" in page.source and "#0101" not in page.source  # no stand-in colour is left


def test_hostile_names_do_not_run(runs):
    config = json.loads((runs / "sine" / "config.json").read_text())
    config["tasks"]["name"] = config["learner"]["fields"]["note"] = HOSTILE
    (runs / "sine" / "config.json").write_text(json.dumps(config))

    def rename(plain):
        plain["scores"][0]["protocol"]["tasks"] = plain["machine"]["cpu"] = HOSTILE
        plain["scores"][0]["controls"][HOSTILE] = plain["scores"][0]["controls"].pop("zero_steps")

    change_scores(runs / "sine", rename)
    compared = report(runs / "sine", runs / ODD)
    single = Page(runs / "sine" / "report.html")
    for page in (compared, single):
        assert not page.all("script") and HOSTILE in page.text
    assert not compared.all("b") and ODD in compared.text
    assert quote(f"{ODD}/report.html") in [a["href"] for a in compared.all("a")]
    assert "Not comparable: another protocol, tasks (" in single.text


def test_the_same_run_gives_the_same_bytes(runs):
    first = write_report([runs / "images"]).read_bytes()
    assert write_report([runs / "images"], runs / "again.html").read_bytes() == first


# --- what is missing or broken ---------------------------------------------------------------------------------------


def test_scores_of_an_older_theta_are_called_so(runs):
    assert "older theta" not in report(runs / "sine").text
    trained = qs.load(runs / "sine")
    assert isinstance(trained, qs.Trained)
    moved = {name: value + 1 for name, value in trained.theta.items()}
    dataclasses.replace(trained, theta=moved).save(runs / "sine" / "learner.qs")
    assert "the scores are of an older theta" in report(runs / "sine").text


def test_one_absurd_error_leaves_the_others_to_be_seen():
    protocol = qs.Protocol("MAML", "table", "test", None, 5, 5, "mean squared error", 3, 1, False, "none")
    scores = [Score(torch.full((3,), mean).double(), protocol) for mean in (1.0, 2.0, 1e5)]
    scale = Scale(scores)
    assert [scale.bar(score)["width"] for score in scores] == [20.0, 40.0, 100.0]


def test_missing_parts_name_the_command_that_makes_them(runs):
    for name in ("scores.json", "examples.safetensors", "metrics.jsonl", "timing.json", "learner.qs"):
        (runs / "images" / name).unlink()
    page = report(runs / "images").text
    assert "not evaluated" in page and page.count("quickstudy evaluate images") == 3
    assert "metrics.jsonl is missing" in page and "timing.json is missing" in page
    assert "Training has not finished: 0 of 5 iterations" in page and "--resume" in page
    assert "images has no score" in re.sub(r" \(ProtoNet\)", "", report(runs / "images", runs / "sine").text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"learner": {"name": "MAML"}}'),
        ("scores.json", '{"scores": []}'),
        ("scores.json", '{"scores": [{"values": [1.0]}]}'),
        ("timing.json", '{"total": "long"}'),
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("examples.safetensors", "none"),
        ("learner.qs", "none"),
    ],
)
def test_broken_files_are_named(runs, name, content):
    (runs / "images" / name).write_text(content)
    with pytest.raises(FileFormatError, match=re.escape(name)):
        write_report([runs / "images"])


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain["scores"][0]["values"].pop(),
        lambda plain: plain["scores"][0]["values"].__setitem__(0, float("nan")),
        lambda plain: plain["scores"][0]["protocol"].update(ways="many"),
    ],
)
def test_scores_that_cannot_be_true_are_refused(runs, change):
    change_scores(runs / "images", change)
    with pytest.raises(FileFormatError, match=r"scores\.json"):
        write_report([runs / "images"])


def test_examples_that_do_not_fit_are_refused(runs):
    path = runs / "images" / "examples.safetensors"
    tensors, _ = files.read_tensors(path, "examples")
    for name, wrong in (("0.output", tensors["0.output"][:2]), ("1.query.y", tensors["1.query.y"] + 7)):
        files.write_tensors(path, "examples", tensors | {name: wrong}, {"episodes": 3})
        with pytest.raises(FileFormatError, match="answers"):
            write_report([runs / "images"])


def test_what_is_no_run_is_refused(runs, tmp_path):
    for wrong in ([], [tmp_path / "nowhere"], [tmp_path], [runs / "images" / "config.json"]):
        with pytest.raises(RunError):
            write_report(wrong)
    with pytest.raises(RunError, match="would replace"):
        write_report([runs / "images", runs / "sine"], runs / "sine" / "report.html")
    with pytest.raises(QuickstudyError, match="cannot write"):
        write_report([runs / "images"], runs / "images" / "config.json" / "page.html")


# --- several runs ----------------------------------------------------------------------------------------------------


def test_runs_under_one_protocol_are_compared_in_pairs(runs):
    page = report(runs / "images", runs / ODD)
    a, b = (qs.Score.from_dict(scores_of(runs / name)["scores"][0]) for name in ("images", ODD))
    best, other = sorted((a, b), key=lambda score: -score.mean)
    difference = qs.compare(other, best)
    assert f"{words.signed(difference)}, {'decided' if difference.decided else 'not decided'}" in page.text
    for name in ("images", ODD):
        assert as_percent(scores_of(runs / name)["scores"][0]) in page.text
    middle, apart = 50 * (a.mean + b.mean), 100 * abs(a.mean - b.mean) / 2**0.5
    assert f"{apart:.1f} points standard deviation from seed to seed" in page.text
    over = words.both(qs.Score.of_trainings([dataclasses.replace(one, controls={}) for one in (a, b)]))
    assert f"): {over}, an interval that holds their spread" in page.text and over.startswith(f"{middle:.1f} %")
    assert (runs / "images" / "report.html").exists()


@pytest.mark.parametrize("field", ["steps", "ensemble", "normalisation"])
def test_tests_in_other_ways_are_not_seeds_of_one_learner(runs, field):
    """One table may hold them, but their difference is not a spread from seed to seed."""
    change_scores(runs / ODD, lambda plain: [s["protocol"].update({field: OTHERS[field]}) for s in plain["scores"]])
    assert "seeds of the same settings" not in report(runs / "images", runs / ODD).text


def test_one_training_is_one_seed_however_often_it_is_tested(runs):
    shutil.copytree(runs / "images", runs / "again")
    assert "seeds of the same settings" not in report(runs / "images", runs / "again").text
    assert "2 seeds of the same settings" in report(runs / "images", runs / "again", runs / ODD).text


def test_unlike_protocols_are_refused_in_words(runs):
    path = write_report([runs / "images", runs / "sine", runs / "report.html"])  # as `runs/*` gives the second time
    page = Page(path)
    assert path == runs / "report.html"
    assert "No two of these runs were measured under the same protocol" in page.text
    assert "Not comparable with the first table, as the protocols differ: tasks (blobs against sinusoid)" in page.text
    assert "metric (accuracy against mean squared error)" in page.text
    links = {a["href"] for a in page.all("a")}
    assert links == {"images/report.html", "sine/report.html"} and all((runs / str(link)).exists() for link in links)


def test_runs_of_the_same_name_are_told_apart(runs):
    shutil.copytree(runs / "sine", runs / "other" / "sine")
    page = report(runs / "sine", runs / "other" / "sine")
    assert "runs/sine" in page.text and "other/sine" in page.text
    assert "+0 ± 0, not decided" in page.text


# --- pictures and tables to paste elsewhere --------------------------------------------------------------------------


def table(page: Path, name: str) -> pandas.DataFrame:
    return pandas.read_csv(folder_of(page) / f"{name}.csv")


def test_the_plots_of_a_page_are_written_as_pictures(runs):
    for name, wanted in (
        ("images", {"training-loss", "accuracy", "accuracy-against-confidence"}),
        ("sine", {"training-loss", "mean-squared-error", "mean-squared-error-against-inner-steps", "test-task-3"}),
    ):
        folder = folder_of(write_report([runs / name], png=True))
        found = {path.stem: np.asarray(Image.open(path).convert("L")) for path in folder.iterdir()}
        assert wanted <= found.keys() and all(picture.std() > 5 for picture in found.values())
    shown = Page(runs / "sine" / "report.html")
    assert len(found) == shown.source.count('class="plot"')


def test_a_legend_is_drawn_where_no_page_holds_it(tmp_path):
    draw = lines([Series([0, 1], [1, 2], "$x^{2")], "x", "y")
    for name, legend in (("with", [("$x^{2", "s1", 1)]), ("without", [])):
        save(tmp_path / f"{name}.svg", with_legend(draw, legend))
    assert "$x^{2" in (tmp_path / "with.svg").read_text() and "$x^{2" not in (tmp_path / "without.svg").read_text()


def test_the_numbers_of_a_page_are_written_as_tables(runs):
    page, run = write_report([runs / "images"], csv=True), read_run(runs / "images")
    score = run.score
    scores = table(page, "scores")
    assert len(scores) == len(run.evaluation.scores) + len(score.controls) and set(scores.run) == {"images"}
    assert scores["mean"][0] == pytest.approx(score.mean) and scores.interval[0] == pytest.approx(score.interval)
    for name, control in score.controls.items():
        row = scores[scores.control == name].iloc[0]
        difference = qs.compare(score, control, allow=("transductive",))
        found = (row["mean"], row.score_minus_control, row.difference_interval)
        assert found == pytest.approx((control.mean, difference.mean, difference.interval))
        assert row.decided == difference.decided and row.shots == 1
    values = table(page, "scores-per-task")
    main = values[values.control.isna() & values.transductive].sort_values("episode")
    assert main.value.tolist() == pytest.approx(score.values.tolist()) and len(values) == EPISODES * len(scores)
    curve = table(page, "learning-curve")
    assert curve.iteration.tolist() == run.column("iteration")[1] and curve.loss.tolist() == run.column("loss")[1]
    bins = table(page, "reliability")
    ece = (bins.queries * (bins.accuracy - bins.confidence).abs()).sum() / bins.queries.sum()
    assert table(page, "calibration")["mean"][0] == pytest.approx(ece) and bins.queries.sum() == EPISODES * 12
    assert not list(folder_of(page).glob("*.png")) and not (folder_of(page) / "confusion.csv").exists()


def test_a_comparison_has_its_pictures_and_tables_too(runs):
    (runs / "report-files").mkdir()  # of the last time: `runs/*` gives it too
    page = write_report(sorted(runs.iterdir()), png=True, csv=True)
    assert page == runs / "report.html" and (folder_of(page) / "accuracy.png").exists()
    assert set(table(page, "scores").run) == {"images", ODD, "sine"}
    ranking, (a, b) = table(page, "ranking"), (read_run(runs / name).score for name in ("images", ODD))
    assert abs(ranking.minus_best[ranking.group == 1]).max() == pytest.approx(abs(qs.compare(a, b).mean))
    assert len(ranking) == table(page, "scores").control.isna().sum()
    assert table(runs / "sine" / "report.html", "inner-steps").steps.tolist() == [0, 1, 2, 3, 5, 10]


def test_the_command_says_where_they_are(runs, capsys):
    assert main.run(["report", str(runs / "sine"), "--csv"]) == 0
    assert f"its plots and tables: {runs / 'sine' / 'report-files'}" in capsys.readouterr().out
    assert main.run(["report", str(runs / "sine")]) == 0
    assert "tables" not in capsys.readouterr().out


# --- tasks that are somebody, and texts -------------------------------------------------------------------------------


def test_each_task_is_told_worst_first():
    protocol = qs.Protocol("MAML", "schools", "test", None, 2, 2, "mean squared error", 9, 1, False, "none")
    values = torch.tensor([1.0, 3.0, 2.0, 9.0, 9.0, 9.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    score = Score(values, protocol, tasks=tuple("bbbcccaaa"))
    found = served.section(score)
    assert [row["name"] for row in found.rows] == ["c", "b", "a"]
    assert [row["episodes"] for row in found.rows] == [3, 3, 3]
    assert found.conclusion == "From 9 for c to 0.5 for a, over 3 tasks."
    accurate = dataclasses.replace(score, protocol=dataclasses.replace(protocol, metric="accuracy"), values=values / 10)
    assert [row["name"] for row in served.section(accurate).rows] == ["a", "b", "c"]
    names = tuple(f"t{i // 3:02}" for i in range(120))
    many = dataclasses.replace(score, values=torch.arange(120.0).double(), tasks=names)
    assert [row["name"] for row in served.section(many).rows][:2] == ["t39", "t38"]
    assert len(served.section(many).rows) == served.WORST + served.BEST
    assert served.section(dataclasses.replace(score, tasks=())) is None
    rare = dataclasses.replace(score, tasks=tuple("bbbcccade"))
    assert served.section(rare).conclusion.endswith(
        "over 2 tasks. 3 others had fewer than 3 episodes, which say little."
    )
    assert served.section(dataclasses.replace(score, tasks=tuple("abcdefghi"))) is None


def test_texts_and_names_of_classes_are_shown(tmp_path):
    kinds = ("tea", "milk", "juice", "wine", "beer")
    rows = [{"text": f"{kind} <b>{i}</b>", "label": kind} for kind in kinds for i in range(4)]
    tasks = qs.tasks.from_text(pandas.DataFrame(rows), "train", ways=3, shots=1, queries=2)
    learner = qs.ProtoNet(qs.nn.text(sketch=64, width=8), ways=3)
    trained = qs.train(learner, tasks, iterations=1, meta_batch=1, out=tmp_path, progress=False)
    evaluate_run(tmp_path, trained, tasks, episodes=10, progress=False, engine="loop")
    page = write_report([tmp_path]).read_text()
    told = tasks.told(seeds.generator(1, "test", 0))
    assert len(told["classes"]) == 3 and all(f"<dt>{name}</dt>" in page for name in told["classes"])
    assert told["query"][0].replace("<b>", "&lt;b&gt;").replace("</b>", "&lt;/b&gt;") in page
    assert "<b>0</b>" not in page


def test_tables_are_told_in_the_targets_unit(tmp_path):
    pupils = [{"school": f"school {i // 6}", "age": i * 7 % 11} for i in range(60)]
    frame = pandas.DataFrame(pupils)
    frame["mark"] = 1000.0 + frame.age + frame.index % 5
    tasks = qs.tasks.from_table(frame, "test", task="school", target="mark", shots=2, queries=2)
    learner = qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.01)
    trained = qs.train(learner, tasks, iterations=1, meta_batch=2, out=tmp_path, progress=False)
    evaluate_run(tmp_path, trained, tasks, episodes=12, progress=False, engine="loop")
    example = read_run(tmp_path).examples[0]
    assert 1000 <= float(example.query_y.min()) <= float(example.query_y.max()) <= 1016
    assert all(900 < float(value) < 1100 for value in example.output.flatten())
    page = write_report([tmp_path]).read_text()
    assert f"Test task 1: {example.described['task']}" in page and "Who is served well" in page
