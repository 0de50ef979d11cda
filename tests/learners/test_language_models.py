"""A model of the transformers library as it is: dict inputs, an output of its own class, and MAML through all of it."""

import pytest
import torch
import torch.nn.functional as F
from problems import assert_close
from torch import nn
from torch.func import functional_call

import quickstudy as qs
from quickstudy.episodes import unstack
from quickstudy.errors import DataError
from quickstudy.learner import set_training
from quickstudy.nn.model import call

transformers = pytest.importorskip("transformers")

WORDS, LENGTH, WAYS, LR = 30, 6, 3, 0.3


def bert(seed: int = 0, **options) -> nn.Module:
    sizes = {"vocab_size": WORDS, "max_position_embeddings": LENGTH, "num_labels": WAYS, "hidden_size": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(seed)
    config = transformers.BertConfig(**sizes, **still | options, attn_implementation="eager")
    return transformers.BertForSequenceClassification(config)


def texts(n: int, generator: torch.Generator, ways: int = WAYS) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Texts of different lengths, padded, whose first word tells the class."""
    y = torch.arange(n) % ways
    tokens = torch.randint(ways + 1, WORDS, (n, LENGTH), generator=generator)
    tokens[:, 0] = y + 1
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (n, 1), generator=generator)).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}, y


def source(tasks: int = 6) -> qs.tasks.ArrayTasks:
    drawn = torch.Generator().manual_seed(0)
    made = []
    for _ in range(tasks):
        (x, y), (xq, yq) = texts(6, drawn), texts(9, drawn)
        made.append({"support": x, "support_labels": y, "query": xq, "query_labels": yq})
    return qs.tasks.from_arrays(made)


def by_hand(model: nn.Module, episode: qs.Episode, steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The meta-loss of MAML and its gradient by plain autograd, without the library."""
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def loss(phi, batch):
        return F.cross_entropy(functional_call(model, phi, (), batch.x).logits, batch.y)

    phi = theta
    for _ in range(steps):
        slopes = torch.autograd.grad(loss(phi, episode.support), list(phi.values()), create_graph=True)
        phi = {name: value - LR * g for (name, value), g in zip(phi.items(), slopes, strict=True)}
    total = loss(phi, episode.query)
    return total.detach(), dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))


def test_the_meta_gradient_is_that_of_plain_autograd(double):
    model = bert()
    episodes = source().sample(2, torch.Generator().manual_seed(1))
    assert episodes.support.x["input_ids"].dtype == torch.int64
    learner = qs.MAML(model, lr=LR, steps=2)
    loss, slope = qs.meta_gradient(learner, learner.init(), episodes, "loop")
    ones = [by_hand(model, one, 2) for one in unstack(episodes)]
    assert_close(loss, torch.stack([one for one, _ in ones]).mean(), 1e-10)
    for name in slope:
        assert_close(slope[name], torch.stack([g[name] for _, g in ones]).mean(0), 1e-10)


def test_from_training_to_a_file_and_back(tmp_path):
    tasks = source()
    learner = qs.MAML(bert(), lr=LR, steps=2)
    trained = qs.train(learner, tasks, iterations=2, meta_batch=2, engine="loop", progress=False, out=tmp_path / "run")
    assert any(not torch.equal(trained.theta[name], value) for name, value in learner.init().items())
    score = qs.evaluate(trained, tasks, episodes=4, engine="loop")
    assert score.protocol.ways == WAYS and 0 <= score.mean <= 1

    x, y = texts(6, torch.Generator().manual_seed(2))
    asked, _ = texts(5, torch.Generator().manual_seed(3))
    names = [["refund", "order", "hours"][k] for k in y]
    predictor = trained.adapt(x, names)
    phi = learner.adapt(trained.theta, qs.Batch(x, torch.tensor([2, 1, 0])[y]))  # in the order of the names
    assert_close(predictor.predict_proba(asked), learner.predict(trained.theta, phi, asked).softmax(1), 1e-6)
    assert set(predictor.predict(asked)) <= set(names)

    again = qs.load(tmp_path / "run", model=bert(seed=1))
    assert torch.equal(again.adapt(x, names).predict_proba(asked), predictor.predict_proba(asked))
    predictor.save(tmp_path / "predictor.qs")
    loaded = qs.load(tmp_path / "predictor.qs", model=bert(seed=1))
    assert torch.equal(loaded.predict_proba(asked), predictor.predict_proba(asked))
    assert loaded.support.x["input_ids"].dtype == torch.int64
    grown = loaded.updated(asked, ["order"] * 5).predict_proba(x)
    at_once = {name: torch.cat([x[name], asked[name]]) for name in x}
    assert_close(grown, trained.adapt(at_once, names + ["order"] * 5).predict_proba(x), 1e-6)


def test_what_a_tokenizer_gives_is_taken_as_it_is():
    learner = qs.MAML(bert(), lr=LR)
    trained = qs.Trained(learner, learner.init())
    x, y = texts(6, torch.Generator().manual_seed(2))
    as_lists = transformers.BatchEncoding({name: value.tolist() for name, value in x.items()})
    predictor = trained.adapt(as_lists, y)
    assert torch.equal(predictor.predict_proba(as_lists), trained.adapt(x, y).predict_proba(x))


def test_dropout_is_drawn_in_a_meta_loss_and_nowhere_else():
    """Its attention reads the rate of a dropout layer and draws by itself, whatever the layer's mode."""
    model = bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    x, _ = texts(6, torch.Generator().manual_seed(2))
    theta = qs.MAML(model).init()
    assert torch.equal(call(model, theta, x), call(model, theta, x))
    with set_training(True):
        assert not torch.equal(call(model, theta, x), call(model, theta, x))
    attention = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.3).train()
    assert torch.equal(call(attention, theta, x), call(attention, theta, x))
    with set_training(True):
        assert not torch.equal(call(attention, theta, x), call(attention, theta, x))
    assert model.training and model.dropout.p == 0.3  # the user's own is left as it was


def test_inputs_that_the_model_does_not_take_are_refused_in_words():
    learner = qs.MAML(bert(), lr=LR)
    trained = qs.Trained(learner, learner.init())
    x, y = texts(6, torch.Generator().manual_seed(2))
    with pytest.raises(DataError, match=r"cannot read this task: support x \['words'\] \(6, 6\)"):
        trained.adapt({"words": x["input_ids"]}, y)
    with pytest.raises(DataError, match=r"\['attention_mask'\] has 4 rows, \['input_ids'\] has 6 rows"):
        trained.adapt(x | {"attention_mask": x["attention_mask"][:4]}, y)
    with pytest.raises(DataError, match=r"cannot read inputs of shape \['tokens'\] \(6, 6\)"):
        trained.adapt(x, y).predict({"tokens": x["input_ids"]})
