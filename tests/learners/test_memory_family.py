"""The memory family: recurrent cells against torch's, what a stream may know, identities and reductions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import assert_close, clusters, random_episodes
from torch import nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import QuickstudyError
from quickstudy.learner import Batch
from quickstudy.learners.memory.lstm_meta_learner import preprocessed
from quickstudy.learners.memory.mann import least_used
from quickstudy.learners.memory.snail import Layer, attended, convolved, drawn
from quickstudy.nn import recurrent
from quickstudy.training.outer import optimizer_of

pytestmark = pytest.mark.usefixtures("double")
TORCH = {"elman": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
WAYS = 3


def flat_rnn(**fields):
    return qs.MetaRNN(nn.Flatten(), 4, **{"ways": WAYS, "units": 5, "shuffle": False} | fields)


def random_stream(shots: int = 4) -> Batch:
    return mapping.unstack(random_episodes(1, ways=WAYS, shots=shots))[0].support


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", TORCH)
def test_a_cell_is_torchs(cell):
    theirs, x = TORCH[cell](3, 5), torch.randn(2, 3)
    u = x @ theirs.weight_ih.T + theirs.bias_ih
    before = tuple(torch.randn(2, 5) for _ in recurrent.start(cell, 5, x))
    ours = recurrent.step(cell, u, before, theirs.weight_hh, theirs.bias_hh)
    after = theirs(x, before if cell == "lstm" else before[0])
    for a, b in zip(ours, after if cell == "lstm" else (after,), strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("cell", TORCH)
def test_a_cell_has_second_derivatives_under_vmap(cell):
    params = recurrent.draw(cell, 3, 4, torch.Generator().manual_seed(0))
    inputs = torch.randn(3, 6, 3)

    def energy(weight, x):
        state = recurrent.start(cell, 4, x)
        for u in (x @ params["input.weight"].T + params["input.bias"]).unbind():
            state = recurrent.step(cell, u, state, weight, params["state.bias"])
        return state[0].square().sum()

    def curved(weight, x):
        return torch.func.grad(energy)(weight, x).square().sum()

    weight = params["state.weight"]
    found = torch.func.vmap(torch.func.grad(curved), in_dims=(None, 0))(weight, inputs)
    for one, x in zip(found, inputs, strict=True):
        leaf = weight.clone().requires_grad_()
        slope = torch.autograd.grad(energy(leaf, x), leaf, create_graph=True)[0]
        assert_close(one, torch.autograd.grad(slope.square().sum(), leaf)[0], 1e-10)


def test_fresh_weights_have_torchs_shapes_and_an_open_forget_gate():
    drawn = recurrent.draw("lstm", 3, 5, torch.Generator().manual_seed(0))
    theirs = nn.LSTMCell(3, 5)
    assert drawn["input.weight"].shape == theirs.weight_ih.shape
    assert drawn["state.weight"].shape == theirs.weight_hh.shape
    assert float(drawn["input.bias"][5:10].min()) > 0.5 > float(drawn["input.bias"][10:].max())


# --- MetaRNN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", TORCH)
def test_metarnn_is_a_torch_network_that_reads_inputs_beside_the_last_answers(cell):
    learner, batch = flat_rnn(cell=cell), random_stream()
    theta = learner.init()
    theirs = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](4 + WAYS, 5)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.cat([theta["rnn.input.weight"], theta["rnn.label.weight"].T], 1))
        theirs.weight_hh_l0.copy_(theta["rnn.state.weight"])
        theirs.bias_ih_l0.copy_(theta["rnn.input.bias"])
        theirs.bias_hh_l0.copy_(theta["rnn.state.bias"])
        before = torch.cat([torch.zeros(1, WAYS), nn.functional.one_hot(batch.y, WAYS).double()[:-1]])
        wanted = theirs(torch.cat([batch.x, before], 1))[0] @ theta["rnn.head.weight"].T + theta["rnn.head.bias"]
    assert_close(learner.stream(theta, batch), wanted, 1e-12)


def test_an_objective_is_the_loss_that_it_names():
    episode = mapping.unstack(random_episodes(1, ways=WAYS))[0]
    learner, whole = flat_rnn(objective="stream"), Batch(*map(torch.cat, zip(*episode, strict=True)))
    theta = learner.init()
    stream = qs.cross_entropy(learner.stream(theta, whole), whole.y)
    assert_close(learner.meta_loss(theta, episode), stream, 1e-14)
    query = flat_rnn(objective="query")
    phi = query.adapt(theta, episode.support)
    asked = qs.cross_entropy(query.predict(theta, phi, episode.query.x), episode.query.y)
    assert_close(query.meta_loss(theta, episode), asked, 1e-14)


@pytest.mark.parametrize("objective", ["query", "stream"])
@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_training_reads_every_task_in_an_order_of_its_own(objective, name):
    """Two equal tasks have two losses when their order is drawn, and one when it is not."""
    learner = flat_rnn(objective=objective, shuffle=True)
    theta, one = learner.init(), random_episodes(1, ways=WAYS)
    twice = qs.Episode(*(Batch(*(torch.cat([t, t]) for t in batch)) for batch in one))

    def losses(learner):
        return mapping.map_tasks(lambda episode: learner.meta_loss(theta, episode), twice, name)

    drawn = losses(learner)
    assert float((drawn[0] - drawn[1]).abs()) > 1e-6
    assert not torch.equal(losses(learner), drawn)
    fixed = losses(flat_rnn(objective=objective))
    assert_close(fixed[0], fixed[1], 1e-12)


def test_nothing_read_is_the_initial_state():
    learner = flat_rnn(cell="lstm")
    phi = learner.adapt(learner.init(), Batch(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    assert all(not t.any() for t in (*phi.state, phi.last))
    assert learner.stream(learner.init(), Batch(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))).shape == (0, 3)


def test_metarnn_learns_sinusoids():
    learner = qs.MetaRNN(qs.nn.mlp(1, hidden=(40,)), 40, loss=qs.mse_loss, ways=None, cell="gru", units=40)
    tasks, test = (qs.tasks.sinusoid(split, shots=10, queries=5) for split in ("train", "test"))
    settings = {"meta_batch": 16, "engine": "vmap", "progress": False, "clip": 1.0}
    trained = qs.train(learner, tasks, iterations=400, optimizer=lambda v: torch.optim.Adam(v, 5e-3), **settings)
    start = qs.Trained(learner, learner.init())
    before, after = (qs.evaluate(t, test, episodes=100, engine="vmap") for t in (start, trained))
    assert after.mean + after.interval < 0.5 * before.mean


# --- SNAIL -----------------------------------------------------------------------------------------------------------


def flat_snail(**fields):
    return qs.SNAIL(nn.Flatten(), 4, **{"ways": WAYS, "causal_filters": 4, "shuffle": False} | fields)


def test_a_causal_convolution_is_torchs():
    layer, m = Layer("conv", inputs=3, outputs=2, dilation=2), 6
    parts = drawn(layer, torch.Generator().manual_seed(0)) | {"bias": torch.randn(4)}
    a = torch.randn(m, 3)
    kernel = torch.stack([parts["before"], parts["now"]], 2)
    padded = nn.functional.pad(a.T, (2, 0))[None]
    u, v = nn.functional.conv1d(padded, kernel, parts["bias"], dilation=2)[0].T.chunk(2, 1)
    assert_close(convolved(layer, parts, a, a, torch.arange(m)), u.tanh() * v.sigmoid(), 1e-12)


def test_causal_attention_is_torchs():
    layer, m = Layer("attention", inputs=3, outputs=2, keys=4), 6
    parts = drawn(layer, torch.Generator().manual_seed(0))
    parts |= {name: torch.randn_like(value) for name, value in parts.items() if name.endswith("bias")}
    a = torch.randn(m, 3)
    q, k, v = (a @ parts[name].T + parts.get(f"{name}_bias", 0) for name in ("query", "key", "value"))
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(attended(layer, parts, a, a, torch.arange(m)), wanted, 1e-12)


def test_snails_published_sizes():
    layers = qs.SNAIL(nn.Flatten(), 64, ways=5, length=26).layers()
    assert [(one.keys, one.outputs) for one in layers if one.keys] == [(64, 32), (256, 128), (512, 256)]
    assert [one.dilation for one in layers if one.dilation] == [1, 2, 4, 8, 16] * 2


def test_snails_convolutions_reach_the_first_example_from_its_last_position():
    """With attention switched off, what the last position hears of the first example comes by convolution."""
    learner, batch = flat_snail(length=12), random_stream()
    theta = learner.init()
    theta |= {n: torch.zeros_like(v) for n, v in theta.items() if "attention" in n and "value" in n}
    other = batch._replace(y=torch.cat([(batch.y[:1] + 1) % WAYS, batch.y[1:]]))
    apart = (learner.stream(theta, batch) - learner.stream(theta, other)).abs().amax(1)
    assert float(apart[0]) == 0 and float(apart[1:].min()) > 0


# --- MANN ------------------------------------------------------------------------------------------------------------


def flat_mann(**fields):
    small = {"ways": WAYS, "units": 4, "slots": 6, "slot": 3, "heads": 2, "shuffle": False}
    return qs.MANN(nn.Flatten(), 4, **small | fields)


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b) + 1e-8 * (a @ a + b @ b) + 1e-16))


def mann_by_hand(theta, batch, learner):
    """The paper's equations with one head, row by row in numpy."""
    p = {name.removeprefix("mann."): value.numpy() for name, value in theta.items()}
    n, d, units = learner.slots, learner.slot, learner.units
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    h, c, r = np.zeros(units), np.zeros(units), np.zeros(d)
    rows, read, usage, label, outputs = np.zeros((n, d)), np.zeros(n), np.zeros(n), np.zeros(WAYS), []
    for x, y in zip(batch.x.numpy(), batch.y.tolist(), strict=True):
        a = p["input.weight"] @ x + p["input.bias"] + p["label.weight"].T @ label
        a = a + p["read.weight"] @ r + p["state.weight"] @ h + p["state.bias"]
        i, f, g, o = np.split(a, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        key = np.tanh(p["key.weight"] @ h + p["key.bias"])
        least = int(np.argmin(usage))
        rows[least] = 0
        write = sigmoid(p["gate"][0]) * read + (1 - sigmoid(p["gate"][0])) * (np.arange(n) == least)
        for slot in range(n):
            rows[slot] += write[slot] * key
        likeness = np.exp([learner.sharpness * cosine(key, row) for row in rows])
        read = likeness / likeness.sum()
        r = sum(read[slot] * rows[slot] for slot in range(n))
        usage = learner.decay * usage + read + write
        outputs.append(p["head.weight"] @ np.concatenate([h, r]) + p["head.bias"])
        label = np.eye(WAYS)[y]
    return torch.as_tensor(np.stack(outputs))


@pytest.mark.parametrize(("decay", "sharpness"), [(0.9, 1.0), (0.6, 4.0)])
def test_mann_is_the_papers_equations(decay, sharpness):
    learner, batch = flat_mann(heads=1, decay=decay, sharpness=sharpness), random_stream()
    theta = {name: value + 0.3 * torch.randn_like(value) for name, value in learner.init().items()}
    assert_close(learner.stream(theta, batch), mann_by_hand(theta, batch, learner), 1e-10)


def test_the_least_used_rows_are_those_up_to_the_nth_smallest_usage():
    usage = torch.rand(4, 7)
    for n in (1, 3):
        truncated = (usage <= usage.kthvalue(n, 1, keepdim=True).values).double()
        assert torch.equal(least_used(usage, n).sum(1), truncated)
    assert torch.equal(least_used(usage, 3)[:, 0].argmax(1), usage.argmin(1))
    same = torch.zeros(1, 7)  # of equals there are still n, not all
    assert least_used(same, 2).sum() == 2


def test_an_example_is_written_to_as_many_unused_rows_as_there_are_heads():
    learner, batch = flat_mann(), random_stream()
    theta, used = learner.init() | {"mann.gate": torch.full((2,), -1000.0)}, []  # nothing goes to rows read before
    for t in range(4):
        rows = learner.adapt(theta, Batch(batch.x[:t], batch.y[:t])).memory.rows
        used.append(int((rows[0].norm(dim=1) > 0).sum()))
    assert used == [0, 2, 4, 6]


def test_where_in_the_memory_something_is_does_not_matter():
    learner, batch = flat_mann(), random_stream()
    theta = learner.init()
    phi = learner.adapt(theta, batch)
    order, m = torch.randperm(6), phi.memory
    moved = m._replace(rows=m.rows[:, order], read=m.read[:, :, order], usage=m.usage[:, order])
    x = torch.randn(5, 4)
    assert_close(learner.predict(theta, phi._replace(memory=moved), x), learner.predict(theta, phi, x), 1e-12)


def test_mann_trains_with_rmsprop_unless_said():
    optimizer = optimizer_of(flat_mann().outer())([torch.zeros(2, requires_grad=True)])
    assert isinstance(optimizer, torch.optim.RMSprop) and optimizer.defaults["lr"] == 1e-4


# --- what a stream may know ------------------------------------------------------------------------------------------

READERS = {"metarnn": flat_rnn, "snail": flat_snail, "mann": flat_mann}


@pytest.mark.parametrize("name", ["metarnn", "mann"])
def test_a_task_embedding_knows_every_answer(name):
    """The last one too, which a stream would bring only beside the example after it."""
    learner, batch = READERS[name](), random_stream()
    theta = learner.init()
    found = learner.embed(theta, batch)
    for t in range(len(batch.y)):
        other = batch.y.clone()
        other[t] = (other[t] + 1) % WAYS
        assert float((learner.embed(theta, Batch(batch.x, other)) - found).abs().max()) > 1e-6, t


@pytest.mark.parametrize("name", READERS)
def test_neither_the_future_nor_its_own_label_influences_a_row(name):
    """Bit for bit: what comes after example t, and the label of t, change no row up to t; the next row hears of it."""
    learner, batch = READERS[name](), random_stream()
    theta, n = learner.init(), len(batch.x)
    rows = learner.stream(theta, batch)
    for t in range(n):
        y = batch.y.clone()
        y[t:] = (y[t:] + 1 + torch.arange(n - t) % 2) % WAYS
        x = batch.x.clone()
        x[t + 1 :] = torch.randn_like(x[t + 1 :])
        changed = learner.stream(theta, Batch(x, y))
        assert torch.equal(changed[: t + 1], rows[: t + 1])
        assert t == n - 1 or float((changed[t + 1] - rows[t + 1]).abs().max()) > 1e-9


# --- LSTMMetaLearner -------------------------------------------------------------------------------------------------


def as_descent(theta, lr):
    """The gates of plain descent: forget nothing, one rate for everything."""
    gates = {n: torch.zeros_like(v) for n, v in theta.items() if n.startswith("gate.")}
    gates |= {"gate.forget.bias": torch.tensor(1000.0), "gate.input.bias": torch.tensor(lr).logit()}
    return theta | gates


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_gates_that_forget_nothing_and_let_through_a_fixed_share_are_maml(first_order, name):
    """phi = 1 * phi - lr * grad: the same task parameters, and the same meta-gradient of first or second order."""
    net, episodes = qs.nn.mlp(4, WAYS, hidden=(5,), activation="tanh"), random_episodes(3)
    ours = qs.LSTMMetaLearner(net, steps=3, first_order=first_order)
    maml = qs.MAML(net, lr=0.3, steps=3, first_order=first_order)
    theta = as_descent(ours.init(), 0.3)
    loss, slope = qs.meta_gradient(ours, theta, episodes, name)
    wanted, slope_of_maml = qs.meta_gradient(maml, maml.init(), episodes, name)
    assert_close(loss, wanted, 1e-12)
    assert_close({n: slope[n] for n in slope_of_maml}, slope_of_maml, 1e-12)
    support = mapping.unstack(episodes)[0].support
    assert_close(ours.adapt(theta, support), maml.adapt(maml.init(), support), 1e-12)


def test_a_number_is_told_by_the_size_of_its_logarithm_and_its_sign():
    x = torch.tensor([0.5, -20.0, 0.0, 1e-6, -(math.e**-10), 3e-5])
    size, sign = preprocessed(x)
    wanted = [
        (math.log(abs(v)) / 10, np.sign(v)) if abs(v) >= math.exp(-10) else (-1, math.exp(10) * v) for v in x.tolist()
    ]
    assert_close(torch.stack([size, sign], 1), torch.tensor(wanted, dtype=torch.float64), 1e-12)


def test_telling_a_zero_has_a_derivative():
    x = torch.zeros(2, requires_grad=True)
    slopes = torch.autograd.grad(preprocessed(x)[0].sum() + preprocessed(x)[1].sum(), x)[0]
    assert_close(slopes, torch.full((2,), math.exp(10)), 1e-12)


def test_each_coordinate_is_updated_by_the_papers_cell():
    model, steps = nn.Linear(2, 1), 3
    learner = qs.LSTMMetaLearner(model, loss=qs.mse_loss, steps=steps, lr=0.1)
    theta = {n: v + 0.3 * torch.randn_like(v) for n, v in learner.init().items()}
    support = Batch(torch.randn(4, 2), torch.randn(4, 1))
    w, b = theta["weight"][0].tolist(), float(theta["bias"])
    gates = {k: (theta[f"gate.{k}.weight"].tolist(), float(theta[f"gate.{k}.bias"])) for k in ("forget", "input")}
    told = lambda v: [float(t) for t in preprocessed(torch.tensor(v))]  # noqa: E731
    phi, before = [*w, b], {k: [0.0] * 3 for k in gates}
    for _ in range(steps):
        wrong = support.x @ torch.tensor(phi[:2]) + phi[2] - support.y[:, 0]
        slope = [*(2 * (wrong[:, None] * support.x).mean(0)).tolist(), float(2 * wrong.mean())]
        loss = told(float(wrong.square().mean()))
        for i in range(3):
            for k, (weight, bias) in gates.items():
                features = [*told(slope[i]), *loss, phi[i], before[k][i]]
                total = sum(a * v for a, v in zip(weight, features, strict=True)) + bias
                before[k][i] = 1 / (1 + math.exp(-total))
            phi[i] = before["forget"][i] * phi[i] - before["input"][i] * slope[i]
    found = learner.adapt(theta, support)
    assert_close(torch.cat([found["weight"][0], found["bias"]]), torch.tensor(phi), 1e-10)


# --- bad settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "ltsm"}, "Did you mean 'lstm'"),
        ({"objective": "queries"}, "Did you mean 'query'"),
        ({"units": 0}, "units must be at least 1"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(QuickstudyError, match=message):
        flat_rnn(**fields)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (flat_snail, {"causal_filters": 6}, "multiple of 4"),
        (flat_snail, {"length": 0}, "length must be at least 1"),
        (flat_mann, {"heads": 7}, "heads=7, but slots=6"),
        (flat_mann, {"decay": 1.5}, "from 0 to 1"),
        (lambda **fields: qs.LSTMMetaLearner(nn.Linear(2, 3), **fields), {"lr": 1.0}, "between 0 and 1"),
    ],
)
def test_impossible_sizes_are_named(make, fields, message):
    with pytest.raises(QuickstudyError, match=message):
        make(**fields)


def test_a_wrong_width_is_named():
    learner = qs.MetaRNN(nn.Flatten(), 7, ways=WAYS)
    with pytest.raises(QuickstudyError, match="width=7"):
        learner.stream(learner.init(), random_stream())


@pytest.mark.parametrize("ways", [2])
def test_a_predictor_of_fewer_ways_comes_back_from_its_file(tmp_path, ways):
    learner = flat_rnn()
    x, y = clusters(ways=ways).sample(1, torch.Generator().manual_seed(0)).support
    predictor = qs.Trained(learner, learner.init()).adapt(x[0], y[0])
    predictor.save(tmp_path / "p.qs")
    again = qs.load(tmp_path / "p.qs", encoder=nn.Flatten())
    assert torch.equal(again(x[0]), predictor(x[0])) and predictor(x[0]).shape[1] == ways
