"""Trained and Predictor: adapting, answering, saving, loading, exporting, and what bad input gets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import assert_close
from torch import nn

import quickstudy as qs
from quickstudy.base import files
from quickstudy.errors import ConfigError, DataError, FileFormatError


def conv(classes=5, **options):
    torch.manual_seed(0)
    return qs.nn.conv4(channels=1, classes=classes, filters=4, **options)


def trained(learner) -> qs.Trained:
    return qs.Trained(learner, learner.init(), preprocess={"kind": "image", "size": 28, "channels": 1, "invert": True})


LEARNERS = {
    "maml": lambda: qs.MAML(conv(), lr=0.1, steps=2),
    "protonet": lambda: qs.ProtoNet(conv(None, downsample="pool"), ways=5),
    "finetune": lambda: qs.FineTune(conv(30), ways=5, steps=5),
    "nearestcentroid": lambda: qs.NearestCentroid(5),
}


@pytest.fixture
def support():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(10, 1, 28, 28, generator=generator), [f"class{i}" for i in range(5) for _ in range(2)]


@pytest.fixture
def x():
    return torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", LEARNERS)
def test_saved_and_loaded_is_bit_identical(name, support, x, tmp_path):
    one = trained(LEARNERS[name]())
    one.save(tmp_path / "learner.qs")
    two = qs.load(tmp_path / "learner.qs")
    predictor = one.adapt(*support)
    predictor.save(tmp_path / "predictor.qs")
    loaded = qs.load(tmp_path / "predictor.qs")
    assert all(torch.equal(one.theta[k], two.theta[k]) for k in one.theta)
    assert torch.equal(predictor(x), two.adapt(*support)(x))
    assert torch.equal(predictor(x), loaded(x))
    assert loaded.classes == predictor.classes == tuple(f"class{i}" for i in range(5))
    assert loaded.preprocess == one.preprocess


@pytest.mark.parametrize("name", LEARNERS)
def test_exported_program_gives_the_same_output(name, support, x):
    predictor = trained(LEARNERS[name]()).adapt(*support)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(predictor, (x,), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(x[:3]), predictor(x[:3]), atol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_an_answer_does_not_depend_on_the_other_inputs(name, support, x):
    predictor = trained(LEARNERS[name]()).adapt(*support)
    alone = torch.cat([predictor(one[None]) for one in x])
    assert torch.allclose(alone, predictor(x), atol=1e-5)


def test_transductive_when_asked(support, x):
    predictor = trained(LEARNERS["maml"]()).adapt(*support, transductive=True)
    assert not torch.allclose(predictor(x[:2]), predictor(x)[:2], atol=1e-5)


def test_inputs_of_another_shape_are_refused_in_words(support, x):
    predictor = trained(LEARNERS["protonet"]()).adapt(*support)
    for wrong in (x.repeat(1, 3, 1, 1), x[0, 0]):
        with pytest.raises(DataError, match="cannot read inputs of shape"):
            predictor.predict(wrong)


def test_a_run_folder_loads_its_learner(support, x, tmp_path):
    made = trained(LEARNERS["maml"]())
    theta = {name: value + 0.1 * torch.randn_like(value) for name, value in made.theta.items()}  # no fresh network's
    one = qs.Trained(made.learner, theta, {"name": "drawings"}, made.preprocess)
    one.save(tmp_path / "learner.qs")
    loaded = qs.load(tmp_path)
    assert isinstance(loaded, qs.Trained)
    assert (loaded.learner.lr, loaded.learner.steps) == (0.1, 2)
    assert list(loaded.theta) == list(theta) and all(torch.equal(loaded.theta[name], theta[name]) for name in theta)
    assert (loaded.tasks, loaded.preprocess) == (one.tasks, one.preprocess)
    assert torch.equal(loaded.adapt(*support)(x), one.adapt(*support)(x))


def test_labels_come_back_as_they_were_given(support, x):
    inputs, names = support
    one = trained(LEARNERS["protonet"]())
    assert set(one.adapt(inputs, names).predict(x)) <= set(names)
    assert set(one.adapt(inputs, np.array([7, 7, 3, 3, 40, 40, 5, 5, 6, 6])).predict(x)) <= {3, 5, 6, 7, 40}
    assert one.adapt(inputs.numpy(), torch.arange(10) // 2).predict_proba(x).sum(1).allclose(torch.ones(6))


def test_uint8_images_are_scaled(support):
    inputs, names = support
    one = trained(LEARNERS["protonet"]())
    raw = (inputs * 255).round().to(torch.uint8)
    probabilities = [one.adapt(x, names).predict_proba(x) for x in (raw, raw.float() / 255)]
    assert torch.equal(*probabilities)


def test_more_classes_than_in_training_for_those_that_can(x):
    inputs, names = torch.rand(9, 1, 28, 28), list("abcdefghi")
    assert trained(LEARNERS["protonet"]()).adapt(inputs, names).predict_proba(x).shape == (6, 9)
    with pytest.raises(DataError, match=r"labels must be 0\.\.4, as the model has 5 outputs"):
        trained(LEARNERS["maml"]()).adapt(inputs, names)


def test_fewer_classes_than_outputs_never_answers_a_class_that_is_not_there(x):
    predictor = trained(LEARNERS["maml"]()).adapt(torch.rand(4, 1, 28, 28), ["no", "no", "yes", "yes"])
    assert predictor.predict_proba(x).shape == (6, 2)


def test_regression():
    torch.manual_seed(0)
    one = trained(qs.MAML(qs.nn.mlp(2, 1), loss=F.mse_loss, lr=0.01, steps=3))
    predictor = one.adapt(np.random.default_rng(0).normal(size=(7, 2)), np.zeros((7, 1)))
    assert predictor.predict([[0.0, 1.0]]).shape == (1, 1)
    with pytest.raises(ConfigError, match="classification"):
        predictor.predict_proba([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:-1], y), "x has 9 examples, but y has 10"),
        (lambda x, y: (x, ["one"] * 10), r"one class only \('one'\)"),
        (lambda x, y: (x, [0.0, 1.0] * 5), "give names or integers"),
        (lambda x, y: (x[:0], y[:0]), "holds no example"),
        (lambda x, y: (x.clone().fill_(float("nan")), y), "NaN or infinity"),
        (lambda x, y: (x.repeat(1, 3, 1, 1), y), "cannot read this task"),
        (lambda x, y: ("picture.png", y), "must be a tensor or an array"),
        (lambda x, y: (x * 1e38, y), "not finite"),
    ],
)
def test_bad_support(change, message, support):
    with pytest.raises(DataError, match=message):
        trained(LEARNERS["maml"]()).adapt(*change(*support))


class Own(nn.Module):
    """A user's own model, with a frozen part and batch norm whose running statistics it uses."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.frozen, self.norm, self.head = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2)
        self.frozen.requires_grad_(False)
        self.norm.eval()

    def forward(self, x):
        return self.head(self.norm(self.frozen(x)).relu())


def test_a_model_of_the_users_own_is_passed_at_load(tmp_path):
    torch.manual_seed(0)
    model = Own()
    model.norm.running_mean += 3.0
    one = qs.Trained(qs.MAML(model, lr=0.1), qs.MAML(model).init())
    one.save(tmp_path / "own.qs")
    with pytest.raises(FileFormatError, match=r"qs\.load\(path, model=\.\.\.\)"):
        qs.load(tmp_path / "own.qs")
    with pytest.raises(FileFormatError, match="does not fit"):
        qs.load(tmp_path / "own.qs", model=Own(width=5))
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    # The frozen layer and the running statistics are not in theta, and come back all the same.
    assert torch.equal(qs.load(tmp_path / "own.qs", model=Own()).adapt(x, y)(x), one.adapt(x, y)(x))


def test_a_loss_of_the_users_own_is_passed_at_load(tmp_path):
    def own_loss(output, y):
        return F.cross_entropy(output, y)

    one = trained(qs.MAML(conv(), loss=own_loss))
    one.save(tmp_path / "own.qs")
    with pytest.raises(FileFormatError, match="loss of your own"):
        qs.load(tmp_path / "own.qs")
    assert qs.load(tmp_path / "own.qs", loss=own_loss).learner.loss is own_loss


# --- files that are not what they claim ------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    trained(LEARNERS["maml"]()).save(tmp_path / "learner.qs")
    return tmp_path / "learner.qs"


@pytest.mark.parametrize("keep", [0, 3, 8, 100, 0.5, 0.999])
def test_truncated(file, keep):
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        qs.load(file)


def test_any_flipped_bit_is_found(file):
    content = file.read_bytes()
    for place in [*range(0, len(content), 997), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(FileFormatError):
            qs.load(file)


def test_a_pickle_is_refused_unread(tmp_path):
    path = tmp_path / "learner.qs"
    torch.save({"theta": torch.ones(2)}, path)
    with pytest.raises(FileFormatError, match="never unpickles"):
        qs.load(path)
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(FileFormatError, match="never unpickles"):
        qs.load(path)


def test_from_a_newer_version(file, monkeypatch):
    monkeypatch.setattr(files, "VERSION", files.VERSION + 1)
    trained(LEARNERS["maml"]()).save(file)
    monkeypatch.undo()
    with pytest.raises(FileFormatError, match="newer Quickstudy"):
        qs.load(file)


def test_foreign_and_missing_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "foreign.qs")
    with pytest.raises(FileFormatError, match="did not write it"):
        qs.load(tmp_path / "foreign.qs")
    with pytest.raises(FileFormatError, match="there is no file"):
        qs.load(tmp_path / "missing.qs")
    (tmp_path / "text.qs").write_text("hello")
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        qs.load(tmp_path / "text.qs")


def test_a_checkpoint_is_no_learner(tmp_path):
    qs.train(qs.MAML(qs.nn.mlp(1, 1), loss=F.mse_loss), qs.tasks.sinusoid("train"), iterations=1, out=tmp_path / "run")
    with pytest.raises(FileFormatError, match="holds a checkpoint, but a trained was expected"):
        qs.load(tmp_path / "run" / "checkpoint.safetensors")


def test_a_network_of_another_width_does_not_fit_its_file(tmp_path):
    """All of it is in theta: nothing but the shapes tells that it is another network."""

    def own(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))

    learner = qs.MAML(own(3), lr=0.1)
    qs.Trained(learner, learner.init()).save(tmp_path / "own.qs")
    with pytest.raises(FileFormatError, match=r"'0\.weight' has shape \(5, 4\) in the network"):
        qs.load(tmp_path / "own.qs", model=own(5))
    assert qs.load(tmp_path / "own.qs", model=own(3)).learner.lr == 0.1


def test_a_file_is_replaced_and_never_written_into(tmp_path):
    """Whoever has the old file open, or a second name for it, goes on reading the old one whole."""
    path, second = tmp_path / "a.qs", tmp_path / "b.qs"
    files.write_tensors(path, "trained", {"a": torch.ones(3)}, {})
    second.hardlink_to(path)
    with path.open("rb") as opened:
        before = second.read_bytes()
        files.write_tensors(path, "trained", {"a": torch.zeros(3)}, {})
        assert opened.read() == second.read_bytes() == before
    assert torch.equal(files.read_tensors(path, "trained")[0]["a"], torch.zeros(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.qs", "b.qs"]


def test_pack_and_unpack_nested_values():
    tensors: dict[str, torch.Tensor] = {}
    tree = {"state": {0: {"step": torch.tensor(3.0), "on": True}}, "groups": [{"betas": (0.9, 0.999), "none": None}]}
    again = files.unpack(files.pack(tree, tensors, "t"), tensors)
    assert again == tree


# --- a task that grows -----------------------------------------------------------------------------------------------


def grown(make=None):
    """A trained learner, and examples of four classes in a mixed order."""
    torch.manual_seed(0)
    learner = make() if make else qs.ProtoNet(qs.nn.mlp(4, None, hidden=(6,)), ways=3)
    drawn = torch.Generator().manual_seed(1)
    y = ["a", "b", "c", "a", "b", "d", "c", "a"]
    return qs.Trained(learner, learner.init()), torch.randn(len(y), 4, generator=drawn), y


def ridge() -> qs.R2D2:
    return qs.R2D2(qs.nn.mlp(4, None, hidden=(6,)), ways=3)


@pytest.mark.parametrize("make", [None, ridge], ids=["protonet", "ridge"])
def test_learning_one_by_one_is_learning_at_once(make):
    trained, x, y = grown(make)
    predictor = trained.adapt(x[:3], y[:3])
    for i in range(3, len(y)):
        assert predictor.update(x[i : i + 1], y[i : i + 1]) is predictor
    at_once = trained.adapt(x, y)
    assert predictor.classes == at_once.classes == ("a", "b", "c", "d")
    assert_close(predictor.predict_proba(x), at_once.predict_proba(x), 1e-6)


def test_what_is_forgotten_leaves_no_trace():
    trained, x, y = grown()
    predictor = trained.adapt(x, y).forget([0, 4])
    kept = [i for i in range(len(y)) if i not in (0, 4)]
    assert_close(predictor.predict_proba(x), trained.adapt(x[kept], [y[i] for i in kept]).predict_proba(x), 1e-6)
    predictor.forget(classes=["a", "d"])
    assert predictor.classes == ("b", "c")
    kept = [i for i in kept if y[i] in "bc"]
    assert_close(predictor.predict_proba(x), trained.adapt(x[kept], [y[i] for i in kept]).predict_proba(x), 1e-6)
    assert torch.equal(predictor.support.x, x[kept])


def test_a_growing_predictor_goes_on_after_a_file(tmp_path):
    trained, x, y = grown()
    trained.adapt(x[:5], y[:5]).save(tmp_path / "p.qs")
    loaded = qs.load(tmp_path / "p.qs").update(x[5:], y[5:])
    assert_close(loaded.predict_proba(x), trained.adapt(x, y).predict_proba(x), 1e-6)


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_transductive_predictor_grows_as_one(support, x, through_a_file, tmp_path):
    """What it learns again normalises its queries together, as what it was made with did."""
    (inputs, names), one = support, trained(LEARNERS["maml"]())
    predictor = one.adapt(inputs[:8], names[:8], transductive=True)
    if through_a_file:
        predictor.save(tmp_path / "p.qs")
        predictor = qs.load(tmp_path / "p.qs")
    predictor.update(inputs[8:], names[8:])
    assert_close(predictor(x), one.adapt(inputs, names, transductive=True)(x), 1e-6)
    assert not torch.allclose(predictor(x), one.adapt(inputs, names)(x), atol=1e-3)


def test_a_predictor_saved_without_its_support_set_only_answers(tmp_path):
    trained, x, y = grown()
    predictor = trained.adapt(x, y)
    predictor.save(tmp_path / "p.qs", support=False)
    loaded = qs.load(tmp_path / "p.qs")
    assert torch.equal(loaded.predict_proba(x), predictor.predict_proba(x))
    assert x[0].numpy().tobytes() not in (tmp_path / "p.qs").read_bytes()
    with pytest.raises(ConfigError, match="saved without its support set"):
        loaded.update(x, y)


def test_values_grow_too():
    learner = qs.MAML(qs.nn.mlp(4, 1), loss=qs.mse_loss, lr=0.1, steps=2)
    trained, x = qs.Trained(learner, learner.init()), torch.randn(6, 4)
    y = x.sum(1, keepdim=True)
    grown = trained.adapt(x[:4], y[:4]).update(x[4:], y[4:])
    assert_close(grown.predict(x), trained.adapt(x, y).predict(x), 1e-6)


def test_updates_that_do_not_fit_are_refused_and_change_nothing():
    trained, x, y = grown()
    predictor = trained.adapt(x, y)
    before = predictor.predict_proba(x)
    for more, names, message in [
        (torch.randn(1, 5), ["a"], r"so far are x \[8, 4\]"),
        (torch.randn(1, 4), [1], "so far are like 'a', these like 1"),
        (torch.full((1, 4), torch.nan), ["a"], "NaN"),
        (torch.randn(2, 4), ["a"], "10 examples, but y has 9"),
    ]:
        with pytest.raises(DataError, match=message):
            predictor.update(more, names)
    with pytest.raises(DataError, match="no example 8: 8 were shown"):
        predictor.forget([8])
    with pytest.raises(DataError, match="no example of the class 'e'"):
        predictor.forget(classes=["e"])
    with pytest.raises(DataError, match="one class only"):
        predictor.forget(classes=["a", "b", "c"])
    assert torch.equal(predictor.predict_proba(x), before)
