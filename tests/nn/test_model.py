"""Any module as a pure function: tied, frozen and unused parameters, normalisation, threads, and a user's module
that is never changed."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, meta_gradient, random_episodes, smooth_conv, snapshot
from torch import Tensor, nn

import quickstudy as qs
from quickstudy.engine import mapping
from quickstudy.errors import ConfigError, DataError
from quickstudy.learner import Theta
from quickstudy.nn import hooks, model, parameters, statistics

pytestmark = pytest.mark.usefixtures("double")


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 1, 6, 6)


def changed(theta: Theta) -> Theta:
    """Other values than the module's own, so that a call that ignores them shows."""
    return {name: value + 0.1 * torch.randn_like(value) for name, value in theta.items()}


def flags(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


# --- parameters and constants ----------------------------------------------------------------------------------------


class Tied(nn.Module):
    """The output layer's weight is the input layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))


class Unused(nn.Module):
    """Has a layer that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.used(x))


def half_frozen() -> nn.Sequential:
    net = nn.Sequential(OrderedDict(body=nn.Linear(4, 5), act=nn.Tanh(), head=nn.Linear(5, 3)))
    net.body.requires_grad_(False)
    return net


def test_parameters_are_detached_copies_of_what_is_trainable():
    net = half_frozen()
    theta = parameters.parameters(net)
    assert list(theta) == ["head.weight", "head.bias"]
    assert not any(value.requires_grad for value in theta.values())
    theta["head.bias"].add_(1)
    assert not torch.equal(theta["head.bias"], net.head.bias)
    assert set(parameters.constants(net)) == {"body.weight", "body.bias"}


def test_tied_parameters_are_one_entry_that_moves_both_places():
    net = Tied()
    theta = changed(parameters.parameters(net))
    assert len(theta) == 3
    x, weight = torch.randn(2, 4), theta["inner.weight"]
    wanted = F.linear(torch.tanh(F.linear(x, weight, theta["inner.bias"])), weight, theta["outer.bias"])
    assert_close(model.call(net, theta, x), wanted, 1e-14)


def test_buffers_and_frozen_parameters_are_constants():
    net = nn.Sequential(half_frozen(), nn.BatchNorm1d(3))
    assert set(parameters.constants(net)) >= {"0.body.weight", "0.body.bias", "1.running_mean", "1.running_var"}


# --- call ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [Tied, Unused, half_frozen, lambda: nn.Linear(4, 3)], ids=["tied", "unused", "frozen", "linear"]
)
def test_call_is_the_module_with_other_parameters(build):
    net, x = build(), torch.randn(5, 4)
    theta = changed(parameters.parameters(net))
    twin = copy.deepcopy(net)
    twin.load_state_dict(theta, strict=False)
    assert_close(model.call(net, theta, x), twin(x), 1e-14)


def test_names_that_are_not_given_keep_the_modules_values():
    net, x = half_frozen(), torch.randn(5, 4)
    bias = {"head.bias": torch.ones(3)}
    assert_close(model.call(net, bias, x), net(x) - net.head.bias + 1, 1e-14)


@pytest.mark.parametrize("way", ["in place", "load_state_dict", "new tensor", "data", "new layer"])
def test_a_change_of_the_users_module_is_seen(way):
    """Frozen parameters are the module's own: what the user loads into it later counts from then on."""
    net, x = half_frozen(), torch.randn(5, 4)
    theta = parameters.parameters(net)
    model.call(net, theta, x)
    with torch.no_grad():
        if way == "in place":
            net.body.weight.mul_(2)
        elif way == "load_state_dict":
            net.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})
        elif way == "new tensor":
            net.body.weight = nn.Parameter(2 * net.body.weight, requires_grad=False)
        elif way == "data":
            net.body.weight.data = 2 * net.body.weight.data
        else:
            net.body = nn.Linear(4, 5).requires_grad_(False)
        assert_close(model.call(net, theta, x), torch.func.functional_call(net, theta, (x,)), 1e-14)


def test_changed_running_averages_are_seen():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval(), torch.randn(5, 4)
    theta = parameters.parameters(net)
    model.call(net, theta, x)
    net[1].running_mean.fill_(3.0)
    assert_close(model.call(net, theta, x), net(x), 1e-14)


class Counting(nn.Module):
    """Counts its own calls in a buffer and lets the count show, as a few published networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) + self.calls


@pytest.mark.parametrize(
    "build",
    [Counting, lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))],
    ids=["counter", "spectral norm"],
)
def test_a_layer_that_writes_to_itself_gives_the_same_answer_each_time(build):
    net, x = build(), torch.randn(5, 4)
    theta, unchanged = parameters.parameters(net), snapshot(net)
    assert torch.equal(model.call(net, theta, x), model.call(net, theta, x))
    assert unchanged()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True),
        lambda: nn.LSTM(4, 3),
    ],
    ids=["batch norm", "instance norm", "transformer", "lstm"],
)
def test_the_users_module_is_never_changed(build, training):
    net, x = build().train(training), torch.randn(5, 4)
    x = x if isinstance(net, nn.Sequential) and isinstance(net[1], nn.BatchNorm1d) else torch.randn(2, 4, 4)
    theta, unchanged, before = parameters.parameters(net), snapshot(net), flags(net)
    layers, text = list(net.modules()), str(net)
    model.call(net, changed(theta), x)
    assert unchanged() and flags(net) == before and str(net) == text
    assert all(a is b for a, b in zip(layers, net.modules(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_switching_between_train_and_eval_is_seen():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(5, 4)
    net[1].running_mean.fill_(7.0)
    theta = parameters.parameters(net)
    by_batch = model.call(net, theta, x)
    assert_close(by_batch.mean(0), torch.zeros(3), 1e-9)
    assert_close(model.call(net.eval(), theta, x), net(x), 1e-14)
    assert torch.equal(model.call(net.train(), theta, x), by_batch)


# --- threads ---------------------------------------------------------------------------------------------------------


def sequence_net(layer: nn.Module) -> Callable[[], nn.Module]:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = copy.deepcopy(layer)

        def forward(self, x: Tensor) -> Tensor:
            found = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
            return found[0] if isinstance(found, tuple) else found

    return Reads


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: smooth_conv("batch"), (6, 1, 6, 6)),
        (Tied, (6, 4)),
        (sequence_net(nn.LSTM(4, 3)), (5, 2, 4)),
        (sequence_net(nn.MultiheadAttention(4, 2)), (5, 2, 4)),
    ],
    ids=["conv", "tied", "lstm", "attention"],
)
def test_eight_threads_at_once_give_what_one_gives(build, shape):
    net = build().double()
    work = [(changed(parameters.parameters(net)), torch.randn(shape)) for _ in range(32)]
    serial = [model.call(net, theta, x) for theta, x in work]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: model.call(net, *job), work))
    assert all(torch.equal(a, b) for a, b in zip(parallel, serial, strict=True))


@pytest.fixture
def attention_kernels() -> Iterator[Callable[[], tuple[bool, ...]]]:
    """Torch's settings of the attention kernels, all allowed before and after the test."""
    backends = torch.backends.cuda  # the settings of the processor's kernels too, in spite of the name
    kinds = ("flash", "mem_efficient", "math")
    for kind in kinds:
        getattr(backends, f"enable_{kind}_sdp")(True)
    yield lambda: tuple(getattr(backends, f"{kind}_sdp_enabled")() for kind in kinds)
    for kind in kinds:
        getattr(backends, f"enable_{kind}_sdp")(True)


class Meets(nn.Module):
    """The first thread's call begins before the second's and ends before it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        # Shared by the copies that `call` makes for each thread.
        self.__class__.first_in, self.__class__.second_in, self.__class__.first_out = (
            threading.Event() for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        cls = type(self)
        if not cls.first_in.is_set():
            cls.first_in.set()
            cls.second_in.wait(10)
        else:
            cls.second_in.set()
            cls.first_out.wait(10)
        return self.weight * x


def test_overlapping_calls_leave_torchs_settings_as_they_were(attention_kernels):
    """Which attention kernel torch takes is one setting for all threads: two calls must not restore each other's."""
    before, net = attention_kernels(), Meets()
    theta, x = parameters.parameters(net), torch.ones(1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.call, net, theta, x)
        Meets.first_in.wait(10)
        second = pool.submit(model.call, net, theta, x)
        first.result(20)
        Meets.first_out.set()
        second.result(20)
    assert attention_kernels() == before


def test_a_call_leaves_torchs_settings_as_they_were(attention_kernels):
    before, net = attention_kernels(), sequence_net(nn.MultiheadAttention(4, 2))()
    model.call(net, parameters.parameters(net), torch.randn(5, 2, 4))
    assert attention_kernels() == before


# --- batch normalisation ---------------------------------------------------------------------------------------------


def by_hand(x: Tensor, moments_of: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise each channel of x [n, c, h, w] by the mean and biased variance of `moments_of`."""
    mean = moments_of.mean((0, 2, 3), keepdim=True)
    variance = ((moments_of - mean) ** 2).mean((0, 2, 3), keepdim=True)
    scaled = (x - mean) / torch.sqrt(variance + eps)
    return scaled * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def affine_norm(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 0.5, -1.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return layer


@pytest.mark.parametrize(
    "build",
    [lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, track_running_stats=False), lambda: qs.nn.norm("batch", 3)],
    ids=["running averages", "none kept", "ours"],
)
def test_a_batch_norm_in_training_mode_uses_its_batch(build):
    layer, x = affine_norm(build()), torch.randn(4, 3, 2, 2) * 3 + 1
    theta = parameters.parameters(layer)
    assert_close(model.call(layer, theta, x), by_hand(x, x, theta["weight"], theta["bias"]), 1e-12)


def test_a_batch_norm_without_running_averages_uses_its_batch_in_eval_mode_too():
    layer, x = affine_norm(nn.BatchNorm2d(3, track_running_stats=False)).eval(), torch.randn(4, 3, 2, 2)
    assert_close(model.call(layer, parameters.parameters(layer), x), layer(x), 1e-12)
    assert statistics.normalisation(layer) == "batch"


def test_a_batch_norm_in_eval_mode_uses_its_averages():
    layer, x = affine_norm(nn.BatchNorm2d(3)), torch.randn(4, 3, 2, 2)
    for _ in range(3):
        layer(torch.randn(4, 3, 2, 2) + 1)
    layer.eval()
    assert_close(model.call(layer, parameters.parameters(layer), x), layer(x), 1e-14)


class Shared(nn.Module):
    """One normalisation layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm = self.again = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.again(self.first(self.norm(x))))


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_a_normalisation_layer_in_two_places_keeps_no_averages(name):
    net, episodes = Shared(), random_episodes()
    learner = qs.MAML(net, lr=0.1)
    unchanged = snapshot(net)
    loss = meta_gradient(learner, learner.init(), episodes, name)[0]
    assert_close(loss, qs.meta_gradient(learner, learner.init(), episodes, "loop")[0], 1e-12)
    assert unchanged()


def batch_norm_with(policy: str) -> Callable[..., Tensor]:
    layer = qs.nn.norm(policy, 3)
    return lambda x, weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (5, 3), (4, 3, 2)])
def test_our_batch_norm_is_differentiable_twice(shape):
    """Its second derivative is written by hand: checked against finite differences, and the third against torch's."""
    x = (torch.randn(shape) * 2 + 1).requires_grad_()
    weight, bias = torch.randn(3).requires_grad_(), torch.randn(3).requires_grad_()
    function = batch_norm_with("batch")
    assert torch.autograd.gradcheck(function, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, bias), fast_mode=True)


def test_our_batch_norms_third_derivative():
    """Two inner steps of which each is itself second order need it. Compared with plain operations."""

    def third(normalise: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(0)
        x = torch.randn(4, 3, 2, 2).requires_grad_()
        weight, bias = torch.randn(3).requires_grad_(), torch.randn(3).requires_grad_()
        value = (normalise(x, weight, bias) ** 3).sin().sum()
        for power in (2, 3):
            slopes = torch.autograd.grad(value, (x, weight, bias), create_graph=True)
            value = sum((slope**power).sum() for slope in slopes)  # type: ignore[assignment]
        return torch.cat([s.flatten() for s in torch.autograd.grad(value, (x, weight, bias))])

    assert_close(third(batch_norm_with("batch")), third(lambda x, w, b: by_hand(x, x, w, b)), 1e-10)


def test_a_batch_of_one_value_per_channel_is_refused():
    with pytest.raises((DataError, ValueError), match=r"more than (one|1) value per channel"):
        model.call(qs.nn.norm("batch", 3), {}, torch.randn(1, 3))


# --- support statistics ----------------------------------------------------------------------------------------------


def test_queries_are_normalised_by_the_support_sets_moments():
    layer = affine_norm(qs.nn.norm("support", 3))
    support, query = torch.randn(4, 3, 2, 2) * 3 + 1, torch.randn(2, 3, 2, 2)
    theta = parameters.parameters(layer)
    found = statistics.statistics(layer, theta, support)
    assert set(found) == {"mean", "variance"}
    assert_close(
        model.call(layer, theta | found, query), by_hand(query, support, theta["weight"], theta["bias"]), 1e-12
    )
    assert_close(model.call(layer, theta, support), by_hand(support, support, theta["weight"], theta["bias"]), 1e-12)


def test_statistics_of_a_deep_network_are_those_of_its_layers_inputs():
    """The second layer's moments are of what the first one makes of the support set."""
    net, support, query = smooth_conv("support"), images(), images(3)
    theta = changed(parameters.parameters(net))
    found = statistics.statistics(net, theta, support)
    assert set(found) == {"norm1.mean", "norm1.variance", "norm2.mean", "norm2.variance"}

    def block(i: int, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = theta[f"norm{i}.weight"], theta[f"norm{i}.bias"]
        inputs = [F.conv2d(t, theta[f"conv{i}.weight"], theta[f"conv{i}.bias"], stride=2, padding=1) for t in (x, at)]
        return tuple(F.gelu(by_hand(t, inputs[1], weight, bias)) for t in inputs)  # type: ignore[return-value]

    features = block(2, *block(1, query, support))[0].flatten(1)
    wanted = F.linear(features, theta["head.weight"], theta["head.bias"])
    assert_close(model.call(net, theta | found, query), wanted, 1e-10)


def test_the_support_set_read_with_its_own_statistics_gives_what_it_gave():
    net, support = smooth_conv("support"), images()
    theta = parameters.parameters(net)
    found = statistics.statistics(net, theta, support)
    assert_close(model.call(net, theta | found, support), model.call(net, theta, support), 1e-12)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_other_networks_have_no_statistics(norm):
    net = smooth_conv(norm)
    assert statistics.statistics(net, parameters.parameters(net), images()) == {}


def test_the_gradient_reaches_theta_through_the_statistics():
    net, support, query = smooth_conv("support"), images(), images(3)
    theta = {name: value.requires_grad_() for name, value in parameters.parameters(net).items()}
    names, leaves = list(theta), list(theta.values())

    def output(*values: Tensor) -> Tensor:
        point = dict(zip(names, values, strict=True))
        return model.call(net, point | statistics.statistics(net, point, support), query)

    assert torch.autograd.gradcheck(output, leaves, fast_mode=True, atol=1e-7)


def test_statistics_leave_no_hook_behind():
    net, theta = smooth_conv("support"), parameters.parameters(smooth_conv("support"))
    found = statistics.statistics(net, theta, images())
    before = {name: value.clone() for name, value in found.items()}
    model.call(net, theta, images())
    assert all(torch.equal(found[name], value) for name, value in before.items())


# --- declared normalisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "kind"),
    [
        (smooth_conv("batch"), "batch"),
        (smooth_conv("support"), "support"),
        (smooth_conv("layer"), "layer"),
        (smooth_conv("none"), "none"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "batch"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), "running"),
        (nn.Sequential(nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2)), "batch"),
        (nn.Sequential(nn.LayerNorm(2), nn.BatchNorm1d(2).eval()), "running"),
        (nn.Sequential(nn.LayerNorm(2)), "layer"),
        (nn.Linear(2, 2), "none"),
    ],
)
def test_normalisation_is_named(net, kind):
    assert statistics.normalisation(net) == kind


@pytest.mark.parametrize(
    "net", [smooth_conv("batch"), nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))], ids=["ours", "torch"]
)
def test_switching_the_normalisation_keeps_names_and_values(net):
    net, unchanged = net.double(), snapshot(net)
    inductive = statistics.with_normalisation(net, "support")
    assert [n for n, _ in inductive.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert statistics.normalisation(net) == "batch" and statistics.normalisation(inductive) == "support"
    theta, x = parameters.parameters(net), images()
    found = statistics.statistics(inductive, theta, x)
    assert_close(model.call(inductive, theta | found, x), model.call(net, theta, x), 1e-12)
    one_by_one = torch.cat([model.call(inductive, theta | found, image[None]) for image in x])
    assert_close(one_by_one, model.call(inductive, theta | found, x), 1e-12)
    back = statistics.with_normalisation(inductive, "batch")
    assert torch.equal(model.call(back, theta, x), model.call(net, theta, x))
    assert unchanged()


def test_a_switched_network_remembers_how_it_is_built():
    net = qs.nn.conv4(1, 3, filters=2, size=8)
    assert statistics.with_normalisation(net, "support").architecture["norm"] == "support"  # type: ignore[index]
    assert net.architecture["norm"] == "batch"  # type: ignore[index]


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match="'batch' and 'support', got 'running'"):
        statistics.with_normalisation(smooth_conv("batch"), "running")
    with pytest.raises(ConfigError, match=r"got 'supprt'\. Did you mean 'support'"):
        qs.nn.norm("supprt", 3)


# --- heads and features ----------------------------------------------------------------------------------------------


def test_the_head_is_the_last_linear_layer():
    net = half_frozen()
    assert parameters.last_linear(net) == "head."
    assert parameters.last_linear(nn.Linear(2, 3)) == ""
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        parameters.last_linear(smooth_conv(classes=None))


def test_the_input_of_a_layer_is_what_it_reads():
    net, x = smooth_conv("none"), images()
    theta = changed(parameters.parameters(net))
    features = hooks.input_of("head", net, theta, x)
    assert_close(F.linear(features, theta["head.weight"], theta["head.bias"]), model.call(net, theta, x), 1e-12)


def test_the_input_of_a_layer_under_vmap():
    net, x = smooth_conv("none"), torch.stack([images(), images()])
    theta = parameters.parameters(net)
    many = torch.func.vmap(lambda one: hooks.input_of("head", net, theta, one))(x)
    assert_close(many, torch.stack([hooks.input_of("head", net, theta, one) for one in x]), 1e-12)


# --- networks of the library -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize("size", [28, 32, 84])
def test_conv4_counts_its_features(size, downsample):
    net = qs.nn.conv4(3, 7, filters=2, size=size, downsample=downsample)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert list(net.state_dict())[:2] == ["block1.conv.weight", "block1.conv.bias"]


def test_conv4_has_the_published_number_of_parameters():
    """Finn's Omniglot network: 64 filters, three further blocks of 64x64x9, batch norm, and 64 x 5 at the end."""
    count = sum(p.numel() for p in qs.nn.conv4(1, 5).parameters())
    side = 2  # 28 -> 14 -> 7 -> 4 -> 2, so the head reads 64 * 2 * 2 features
    assert count == (9 + 1) * 64 + 3 * (64 * 9 + 1) * 64 + 4 * 2 * 64 + (64 * side * side + 1) * 5


def test_the_sinusoid_network_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in qs.nn.mlp(1, 1).parameters()) == 2 * 40 + 41 * 40 + 41


def test_every_network_of_the_library_can_be_built_again_from_its_description():
    for net in (qs.nn.conv4(1, 3, filters=2, size=8, norm="layer"), qs.nn.mlp(4, 2, hidden=(3,), activation="gelu")):
        options = dict(net.architecture)  # type: ignore[arg-type]
        again = qs.nn.NETWORKS[options.pop("name")](**options)
        assert str(again) == str(net)
        again.load_state_dict(net.state_dict())


def test_a_wrong_network_option_is_refused():
    with pytest.raises(ConfigError, match=r"'rleu'\. Did you mean 'relu'"):
        qs.nn.mlp(1, 1, activation="rleu")
    with pytest.raises(ConfigError, match="at least 16x16"):
        qs.nn.conv4(size=8, downsample="pool")


# --- meta-gradients of awkward modules -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_an_unused_parameter_has_gradient_zero_and_stays(name):
    learner, episodes = qs.MAML(Unused(), lr=0.3, steps=2), random_episodes()
    theta = learner.init()
    slope = meta_gradient(learner, theta, episodes, name)[1]
    assert not slope["unused.weight"].any() and not slope["unused.bias"].any()
    assert (slope["used.weight"] != 0).any()
    phi = learner.adapt(theta, mapping.unstack(episodes)[0].support)
    assert torch.equal(phi["unused.weight"], theta["unused.weight"])


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_a_frozen_parameter_is_not_in_theta_and_stays(name):
    net, episodes = half_frozen(), random_episodes()
    learner = qs.MAML(net, lr=0.3, steps=2)
    frozen = snapshot(net.body)
    slope = meta_gradient(learner, learner.init(), episodes, name)[1]
    assert set(slope) == {"head.weight", "head.bias"} and frozen()


@pytest.mark.parametrize("name", ["loop", "threads", "vmap"])
def test_a_network_that_is_frozen_altogether_has_nothing_to_learn(name):
    learner, episodes = qs.MAML(half_frozen().requires_grad_(False)), random_episodes()
    loss, slope = meta_gradient(learner, learner.init(), episodes, name)
    assert slope == {} and torch.isfinite(loss)
