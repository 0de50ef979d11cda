"""Files that an earlier version wrote: they load, and answer as they answered then.

`tests/fixtures` holds a run folder and a predictor, and in expected.json the numbers that the code of that time gave:

    quickstudy train glyphs protonet --ways 3 --shots 1 --queries 2 --filters 4 --iterations 2 --meta-batch 2 \
        --seed 0 --engine loop --out run
    quickstudy evaluate run --episodes 4

and a MAML adapted to three rows of one school of `rows()`, after two iterations on all of them.
"""

import json
import shutil
from pathlib import Path

import pandas
import pytest
import torch

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.experiments.run import read_run

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / "run", tmp_path / "run"))


def images() -> torch.Tensor:
    pattern = torch.arange(6 * 28 * 28).reshape(6, 1, 28, 28).remainder(251) / 250
    return pattern * torch.linspace(0.2, 1, 6)[:, None, None, None]


def rows() -> pandas.DataFrame:
    towns = ["Ulm", "Rome", "Oslo"]
    return pandas.DataFrame(
        [
            {"school": "abcdefghij"[i % 10], "age": 6 + i % 7, "town": towns[i % 3], "mark": (i * i) % 11 / 2 + i % 10}
            for i in range(120)
        ]
    )


def close(found: torch.Tensor, wanted: list) -> bool:
    return torch.allclose(found, torch.tensor(wanted, dtype=found.dtype), rtol=0, atol=1e-5)


def test_the_learner_of_an_old_run_is_the_same(run):
    trained = qs.load(run)
    assert {name: pytest.approx(float(v.double().sum()), abs=1e-5) for name, v in trained.theta.items()} == (
        EXPECTED["run"]["theta"]
    )
    predictor = trained.adapt(images(), ["a", "b", "c"] * 2)
    assert close(predictor.predict_proba(images().flip(0)), EXPECTED["run"]["probabilities"])


def test_an_old_score_is_measured_again(run):
    tasks = qs.tasks.glyphs("test", ways=3, shots=1, queries=2)
    score = qs.evaluate(qs.load(run), tasks, episodes=4, seed=1, engine="loop")
    assert close(score.values, EXPECTED["run"]["accuracies"])
    kept = read_run(run).evaluation.scores[0]
    assert close(kept.values, EXPECTED["run"]["accuracies"])
    assert kept.protocol == score.protocol


def test_an_old_run_is_reported_and_goes_on(run):
    assert main.run(["report", str(run)]) == 0
    assert "41.7" in (run / "report.html").read_text()
    sizes = ["--ways", "3", "--shots", "1", "--queries", "2", "--filters", "4", "--meta-batch", "2", "--seed", "0"]
    rest = ["--engine", "loop", "--iterations", "3", "--resume", "--out", str(run)]
    assert main.run(["train", "glyphs", "protonet", *sizes, *rest]) == 0
    last = read_run(run).metrics[-1]
    assert {name: last[name] for name in EXPECTED["run"]["goes on"]} == pytest.approx(
        EXPECTED["run"]["goes on"], abs=1e-5
    )


def test_an_old_predictor_answers_and_goes_on_learning():
    predictor = qs.load(FIXTURES / "table_predictor.qs")
    asked, more = rows()[30:60:6], rows()[60:80:10]
    assert close(predictor.predict(asked), EXPECTED["table"]["answers"])
    assert close(predictor.update(more, more.mark.to_numpy()).predict(asked), EXPECTED["table"]["updated"])
