"""The command line, in process: what it prints, what it exits with, what it leaves behind."""

import json

import pytest
import torch
from PIL import Image

from quickstudy.cli import main
from quickstudy.tasks.images.glyphs import draw_glyphs

TINY = ["--iterations", "3", "--meta-batch", "2", "--queries", "2", "--filters", "4", "--val-episodes", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve classes of four drawings, as a folder of class folders."""
    folder = tmp_path_factory.mktemp("images")
    for c, drawings in enumerate(draw_glyphs(12, 4, seed=5)):
        for i, drawing in enumerate(drawings):
            path = folder / f"class{c:02d}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(255 - drawing.numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained and evaluated run on glyphs."""
    out = tmp_path_factory.mktemp("runs") / "glyphs"
    assert main.run(["train", "glyphs", "protonet", *TINY, "--out", str(out)]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "6"]) == 0
    return out


def failing(capsys, *argv: str) -> str:
    """The message of a command that must exit 2 without a traceback."""
    assert main.run(list(argv)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("quickstudy: ")
    return captured.err


def test_train_evaluate_adapt_predict_report(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # no path in a table takes two lines
    scores = json.loads((run / "scores.json").read_text())
    assert len(scores["scores"]) == 2  # transductive and not
    assert scores["scores"][0]["protocol"]["episodes"] == 6
    predictor = tmp_path / "p.qs"
    assert main.run(["adapt", str(run), str(images), "--out", str(predictor)]) == 0
    assert "class00, class01" in capsys.readouterr().out
    assert main.run(["predict", str(predictor), str(images / "class03"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 4
    assert answers[0].keys() == {"input", "label", "probability"}
    assert answers[0]["label"].startswith("class")
    assert 0 < answers[0]["probability"] <= 1
    assert main.run(["predict", str(predictor), str(images / "class03" / "0.png")]) == 0
    assert "class03/0.png" in capsys.readouterr().out
    assert main.run(["report", str(run)]) == 0
    assert "report: file://" in capsys.readouterr().out
    assert (run / "report.html").exists()


def test_a_folder_of_images_and_few_classes(images, tmp_path, capsys):
    """Twelve classes leave two for validation: training goes on without, and says so."""
    out = tmp_path / "run"
    assert main.run(["train", str(images), "maml", *TINY, "--out", str(out)]) == 0
    assert "without validation" in capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["request"]["tasks"] == str(images)


def test_regression_from_csv(tmp_path, capsys):
    out, support, inputs = tmp_path / "run", tmp_path / "support.csv", tmp_path / "x.csv"
    assert main.run(["train", "sinusoid", "maml", "--iterations", "3", "--val-episodes", "2", "--out", str(out)]) == 0
    support.write_text("x,y\n0.1,0.2\n1.0,0.9\n-1.0,-0.8\n")
    inputs.write_text("0.5\n2.0\n")
    assert main.run(["adapt", str(out), str(support), "--out", str(tmp_path / "p.qs")]) == 0
    capsys.readouterr()
    assert main.run(["predict", str(tmp_path / "p.qs"), str(inputs), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [a["input"] for a in answers] == [f"{inputs}:1", f"{inputs}:2"]
    assert all(isinstance(a["label"], float) for a in answers)
    support.write_text("0.1,zero\n")
    assert "'zero' where a number, such as 1234.5, is expected" in failing(capsys, "adapt", str(out), str(support))


def test_an_evaluation_scores_what_training_was_asked_to_score(tmp_path, capsys):
    out, few = tmp_path / "run", ["--iterations", "3", "--val-episodes", "2", "--metric", "mean absolute error"]
    assert main.run(["train", "sinusoid", "maml", *few, "--out", str(out)]) == 0
    evaluate = ["evaluate", str(out), "--episodes", "4", "--controls", "support_mean"]
    assert main.run(evaluate) == 0 and "mean absolute error" in capsys.readouterr().out
    assert main.run([*evaluate, "--metric", "mean squared error"]) == 0
    assert "mean squared error" in capsys.readouterr().out


def test_the_seed_gives_the_weights_too(tmp_path):
    from quickstudy.trained.load import load

    thetas = []
    for name in ("a", "b"):
        torch.manual_seed(len(thetas))  # whatever was drawn before does not matter
        assert main.run(["train", "glyphs", "maml", *TINY, "--engine", "loop", "--out", str(tmp_path / name)]) == 0
        thetas.append(load(tmp_path / name / "learner.qs").theta)
    assert all(torch.equal(thetas[0][k], thetas[1][k]) for k in thetas[0])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "glyphs", "mamll"], "Did you mean 'maml'?"),
        (["train", "glyhps", "maml"], "Did you mean 'glyphs'?"),
        (["train", "glyphs"], "quickstudy train TASKS LEARNER"),
        (["train", "sinusoid", "protonet"], "is for classification"),
        (["train", "glyphs", "maml", "--ways", "700", "--out", "none"], "has 600 classes, but ways=700"),
        (["train", "glyphs", "maml", "--shots", "15", "--queries", "6", "--out", "none"], "need 21. Lower them"),
        (["train", "glyphs", "maml", "--iterations", "0", "--out", "none"], "iterations must be at least 1"),
        (["train", "glyphs", "maml", "--adjoint", "unrol", "--out", "none"], "Did you mean 'unroll'?"),
        (["train", "glyphs", "maml", "--device", "cuda:99", "--out", "none"], "--device cpu"),
        (["evaluate", "nowhere"], "there is no run folder or .qs file 'nowhere'"),
        (["evaluate", "nowhere", "--episodes", "1"], "at least 2 test episodes"),
        (["predict", "nowhere.qs", "x.png"], "there is no file 'nowhere.qs'"),
        (["report"], "at least one run folder"),
        (["list", "maml"], "takes no argument"),
    ],
)
def test_bad_words(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in failing(capsys, *argv)
    assert not (tmp_path / "none").exists(), "a folder was made for a run that never began"


def test_an_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        main.run(["train", "glyphs", "maml", "--itertions", "4"])
    assert caught.value.code == 2
    assert "--iterations" in capsys.readouterr().err


def test_out_exists(run, capsys):
    before = (run / "learner.qs").read_bytes()
    assert "--resume" in failing(capsys, "train", "glyphs", "protonet", *TINY, "--out", str(run))
    assert (run / "learner.qs").read_bytes() == before


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    argv = ["train", "glyphs", "protonet", *TINY, "--engine", "loop", "--out", str(tmp_path / "run")]
    assert main.run(argv) == 0
    before = (tmp_path / "run" / "learner.qs").read_bytes()
    assert main.run([*argv, "--resume"]) == 0
    assert (tmp_path / "run" / "learner.qs").read_bytes() == before


def test_adapting_to_bad_folders(run, images, tmp_path, capsys):
    out = ["--out", str(tmp_path / "p.qs")]
    assert "there is no folder" in failing(capsys, "adapt", str(run), str(tmp_path / "none"), *out)
    (tmp_path / "classes" / "empty").mkdir(parents=True)
    assert "empty" in failing(capsys, "adapt", str(run), str(tmp_path / "classes"), *out)
    (tmp_path / "classes" / "empty" / "a.png").write_bytes(b"not an image")
    assert "a.png" in failing(capsys, "adapt", str(run), str(tmp_path / "classes"), *out)
    single = tmp_path / "single" / "only"
    single.mkdir(parents=True)
    (single / "0.png").write_bytes((images / "class00" / "0.png").read_bytes())
    assert "one class only" in failing(capsys, "adapt", str(run), str(single.parent), *out)
    assert not (tmp_path / "p.qs").exists()


def test_predicting_bad_inputs(run, images, tmp_path, capsys):
    predictor = tmp_path / "p.qs"
    main.run(["adapt", str(run), str(images), "--out", str(predictor)])
    capsys.readouterr()
    (tmp_path / "broken.png").write_bytes((images / "class00" / "0.png").read_bytes()[:50])
    assert "broken.png" in failing(capsys, "predict", str(predictor), str(tmp_path / "broken.png"))
    assert "missing.png" in failing(capsys, "predict", str(predictor), str(tmp_path / "missing.png"))
    assert "is not adapted" in failing(capsys, "predict", str(run / "learner.qs"), str(images))
    assert "is a predictor" in failing(capsys, "adapt", str(predictor), str(images))


def test_help_and_list_name_everything(capsys):
    assert main.run([]) == 0
    overview = capsys.readouterr().out
    assert all(command in overview for command in main.COMMANDS)
    assert main.run(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("maml", "protonet", "finetune", "nearestcentroid", "glyphs", "zero_steps"))
    with pytest.raises(SystemExit) as caught:
        main.run(["train", "glyphs", "maml", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "inner learning rate (default: 0.4)" in text
    assert "(default: 2000)" in text


# --- every learner ---------------------------------------------------------------------------------------------------

GRADIENT = ("maml", "reptile", "anil", "boil", "metasgd", "mamlplusplus", "imaml", "metacurvature", "cavia", "leo")


MEMORY = ("metarnn", "snail", "mann", "lstmmetalearner")


@pytest.mark.filterwarnings("ignore::quickstudy.errors.AccuracyWarning")  # three iterations solve nothing
@pytest.mark.parametrize("learner", [*GRADIENT, *MEMORY])
def test_a_learner_trains_adapts_and_answers_on_characters(learner, images, tmp_path, capsys):
    out, predictor = tmp_path / "run", tmp_path / "p.qs"
    assert main.run(["train", "glyphs", learner, *TINY, "--ways", "3", "--engine", "loop", "--out", str(out)]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "4", "--controls", "shuffled_labels"]) == 0
    three = tmp_path / "three"
    for name in ("class00", "class01", "class02"):
        (three / name).mkdir(parents=True)
        for i in range(2):
            (three / name / f"{i}.png").write_bytes((images / name / f"{i}.png").read_bytes())
    assert main.run(["adapt", str(out), str(three), "--out", str(predictor)]) == 0
    capsys.readouterr()
    assert main.run(["predict", str(predictor), str(images / "class01"), "--json"]) == 0
    assert {answer["label"] for answer in json.loads(capsys.readouterr().out)} <= {"class00", "class01", "class02"}


@pytest.mark.filterwarnings("ignore::quickstudy.errors.AccuracyWarning")
@pytest.mark.parametrize("learner", [*(name for name in GRADIENT if name != "leo"), "lstmmetalearner"])
def test_a_gradient_learner_trains_on_sinusoids(learner, tmp_path):
    out = tmp_path / "run"
    sizes = ["--iterations", "3", "--meta-batch", "2", "--val-episodes", "2", "--engine", "loop"]
    assert main.run(["train", "sinusoid", learner, *sizes, "--out", str(out)]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "4", "--controls", "zero_steps", "--steps", "3"]) == 0


def test_a_recurrent_learner_trains_on_sinusoids(tmp_path):
    out = tmp_path / "run"
    sizes = ["--iterations", "3", "--meta-batch", "2", "--val-episodes", "2", "--engine", "loop"]
    assert main.run(["train", "sinusoid", "metarnn", *sizes, "--cell", "gru", "--units", "8", "--out", str(out)]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "4"]) == 0


def test_a_stream_learner_tells_what_each_example_is_worth(tmp_path, capsys):
    out = tmp_path / "run"
    few = ["--units", "8", "--ways", "3", "--engine", "loop", "--out", str(out)]
    assert main.run(["train", "glyphs", "metarnn", *TINY, *few]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "4", "--controls", "--instances", "1", "2"]) == 0
    assert "instance  accuracy" in capsys.readouterr().out
    assert [one["instance"] for one in json.loads((out / "instances.json").read_text())["accuracies"]] == [1, 2]
    assert main.run(["report", str(out)]) == 0
    assert "What each example is worth" in (out / "report.html").read_text()


COMPARING = (
    "protonet",
    "matchingnet",
    "relationnet",
    "attentiveprotonet",
    "r2d2",
    "metaoptnet",
    "finetune",
    "baselinepp",
    "simpleshot",
)


@pytest.mark.parametrize("learner", COMPARING)
def test_a_learner_that_compares_or_pretrains_answers_more_classes_than_it_trained_on(
    learner, images, tmp_path, capsys
):
    out, predictor = tmp_path / "run", tmp_path / "p.qs"
    assert main.run(["train", "glyphs", learner, *TINY, "--ways", "3", "--engine", "loop", "--out", str(out)]) == 0
    sizes = ["--episodes", "3", "--ways", "6", "--shots", "2", "--controls", "shuffled_labels", "--engine", "loop"]
    assert main.run(["evaluate", str(out), *sizes]) == 0
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert scores[0]["protocol"]["ways"] == 6 and len(scores) == 2  # transductive and not
    assert main.run(["adapt", str(out), str(images), "--out", str(predictor)]) == 0
    capsys.readouterr()
    assert main.run(["predict", str(predictor), str(images / "class01"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


@pytest.mark.parametrize("options", [["--context"], ["--no-learn-scale", "--scale", "1"]])
def test_fields_of_matchingnet_on_the_command_line(options, tmp_path):
    out = tmp_path / "run"
    assert main.run(["train", "glyphs", "matchingnet", *TINY, *options, "--engine", "loop", "--out", str(out)]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "2", "--controls", "shuffled_labels"]) == 0


def test_r2d2_on_sinusoids(tmp_path):
    out = tmp_path / "run"
    sizes = ["--iterations", "3", "--meta-batch", "2", "--val-episodes", "2", "--engine", "loop"]
    assert main.run(["train", "sinusoid", "r2d2", *sizes, "--out", str(out)]) == 0
    assert main.run(["evaluate", str(out), "--episodes", "4"]) == 0


@pytest.mark.parametrize("learner", ["maml", "protonet", "finetune", "relationnet"])
def test_the_residual_network_is_chosen_by_name(learner, tmp_path):
    out = tmp_path / "run"
    sizes = ["--network", "resnet12", "--filters", "2", "--norm", "support", "--dropblock", "0.1", "--engine", "loop"]
    assert main.run(["train", "glyphs", learner, *TINY, *sizes, "--out", str(out)]) == 0
    assert "resnet12" in (out / "config.json").read_text()
    assert main.run(["evaluate", str(out), "--episodes", "2", "--controls", "shuffled_labels"]) == 0


@pytest.mark.parametrize("learner", ["maml", "mann"])
def test_raw_pixels_are_chosen_by_name(learner, tmp_path):
    out = tmp_path / "run"
    sizes = ["--network", "pixels", "--engine", "vmap"]
    assert main.run(["train", "glyphs", learner, *TINY, *sizes, "--out", str(out)]) == 2  # pixels have no filters
    plain = [word for word in TINY if word not in ("--filters", "4")]
    assert main.run(["train", "glyphs", learner, *plain, *sizes, "--out", str(out)]) == 0
    assert "pixels" in (out / "config.json").read_text()
    assert main.run(["evaluate", str(out), "--episodes", "2"]) == 0


def test_the_outer_loop_is_the_learners_own_unless_said(tmp_path):
    sizes = ["--iterations", "2", "--meta-batch", "2", "--val-episodes", "2", "--engine", "loop"]
    for given, optimizer, rate in (([], "SGD", 1.0), (["--outer-lr", "0.5"], "SGD", 0.5)):
        out = tmp_path / f"run{rate}"
        assert main.run(["train", "sinusoid", "reptile", *sizes, *given, "--out", str(out)]) == 0
        config = json.loads((out / "config.json").read_text())
        assert config["optimizer"]["name"] == optimizer and config["optimizer"]["lr"] == rate
        assert config["scheduler"]["name"] == "LinearLR"
