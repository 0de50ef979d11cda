"""Networks and normalisation layers: shapes, identities, derivatives of every order that is used."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quickstudy as qs
from quickstudy.errors import ConfigError, DataError
from quickstudy.nn.batch_norm import batch_norm
from quickstudy.nn.conv import Conv2d
from quickstudy.nn.drop_block import DropBlock
from quickstudy.nn.norm import BatchNorm, LayerNorm


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (6, 3), (3, 3, 5)])
def test_batch_norm_and_its_derivatives_up_to_the_third(shape):
    def normalise(x, weight, bias):
        return batch_norm(x, weight, bias, 1e-5)

    def of_its_gradient(x, weight, bias):
        slopes = torch.autograd.grad(normalise(x, weight, bias).tanh().pow(2).sum(), (x, weight), create_graph=True)
        return slopes[0].pow(3).sum() + slopes[1].pow(2).sum()

    inputs = values(*shape), values(3), values(3)
    assert torch.allclose(normalise(*inputs), F.batch_norm(inputs[0], None, None, *inputs[1:], training=True))
    assert torch.autograd.gradcheck(normalise, inputs)
    assert torch.autograd.gradgradcheck(normalise, inputs)
    assert torch.autograd.gradgradcheck(of_its_gradient, inputs)


def test_batch_norm_in_single_precision_is_as_exact_as_torchs():
    """A mean far from zero is where folding it into coefficients could lose digits."""
    x = (torch.randn(25, 8, 7, 7) + 30).requires_grad_()
    weight, bias = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)

    def second(normalise, *inputs):
        slopes = torch.autograd.grad(normalise(*inputs).tanh().pow(2).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((s * s).sum() for s in slopes), inputs)

    def torchs(x, w, b):
        return F.batch_norm(x, None, None, w, b, training=True)

    exact = second(torchs, *(t.detach().double().requires_grad_() for t in (x, weight, bias)))
    ours, theirs = second(lambda x, w, b: batch_norm(x, w, b, 1e-5), x, weight, bias), second(torchs, x, weight, bias)
    for e, a, b in zip(exact, ours, theirs, strict=True):
        assert (a - e).norm() <= 3 * (b - e).norm() + 1e-6 * e.norm()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2, "groups": 2},
        {"bias": False},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_convolution_and_its_derivatives_up_to_the_third(options):
    torchs = nn.Conv2d(4, 2, 3, **options).double()
    ours, names = Conv2d.like(torchs), [name for name, _ in torchs.named_parameters()]

    def convolve(x, *params):
        return torch.func.functional_call(ours, dict(zip(names, params, strict=True)), (x,))

    def of_its_gradient(x, *params):
        slopes = torch.autograd.grad(convolve(x, *params).tanh().pow(2).sum(), (x, params[0]), create_graph=True)
        return slopes[0].pow(3).sum() + slopes[1].pow(2).sum()

    inputs = values(2, 4, 4, 4), *torchs.parameters()
    assert torch.allclose(ours(inputs[0]), torchs(inputs[0]), rtol=1e-12)
    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(of_its_gradient, inputs)


@pytest.mark.parametrize("layer", [BatchNorm(3), LayerNorm([3])])
def test_normalisation_is_the_same_under_vmap(layer):
    """Second derivatives too, which torch's fused layers get wrong there."""
    layer = layer.double()
    x, params = torch.randn(2, 5, 3, dtype=torch.float64), {n: values(3).detach() for n, _ in layer.named_parameters()}

    def second(p, x):
        def loss(p):
            return torch.func.functional_call(layer, p, (x,)).tanh().pow(2).sum()

        return torch.func.grad(lambda p: sum((s**2).sum() for s in torch.func.grad(loss)(p).values()))(p)

    mapped = torch.func.vmap(second, in_dims=(None, 0))(params, x)
    for i in range(2):
        alone = second(params, x[i])
        assert all(torch.allclose(mapped[n][i], alone[n], rtol=1e-10) for n in params)


@pytest.mark.parametrize("downsample", ["stride", "pool"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 84)])
def test_conv4_shapes(downsample, channels, size):
    x = torch.zeros(2, channels, size, size)
    build = {"channels": channels, "size": size, "filters": 4, "downsample": downsample}
    assert qs.nn.conv4(classes=7, **build)(x).shape == (2, 7)
    side = {("stride", 28): 2, ("stride", 32): 2, ("stride", 84): 6, ("pool", 28): 1, ("pool", 32): 2, ("pool", 84): 5}
    assert qs.nn.conv4(**build)(x).shape == (2, 4 * side[downsample, size] ** 2)


def test_conv4_has_the_published_size():
    """MAML's strided Omniglot network: four 3x3 convolutions of 64 filters with batch norm, and a head of 256 x 5."""
    count = sum(p.numel() for p in qs.nn.conv4(channels=1, classes=5).parameters())
    assert count == (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 2 * 64 + 256 * 5 + 5


def test_conv4_takes_a_number_of_filters_for_each_block():
    """R2D2's network, whose last block gives 512 features at each of 2 x 2 places of a 32 x 32 image."""
    net = qs.nn.conv4(3, 5, filters=(96, 192, 384, 512), size=32, downsample="pool")
    widths = [parameter.shape[:2] for name, parameter in net.named_parameters() if name.endswith("conv.weight")]
    assert [tuple(width) for width in widths] == [(96, 3), (192, 96), (384, 192), (512, 384)]
    assert net.head.weight.shape == (5, 512 * 2 * 2)
    again = qs.nn.conv4(**{k: v for k, v in net.architecture.items() if k != "name"})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    with pytest.raises(ConfigError, match=r"four for the four blocks; got \(96, 192\)"):
        qs.nn.conv4(filters=(96, 192))


@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
def test_declared_normalisation_is_found(norm):
    from quickstudy.nn.statistics import normalisation

    assert normalisation(qs.nn.conv4(classes=5, filters=4, norm=norm)) == norm


def test_wrong_words_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'batch'"):
        qs.nn.conv4(classes=5, norm="bach")
    with pytest.raises(ConfigError, match="Did you mean 'stride'"):
        qs.nn.conv4(classes=5, downsample="strided")
    with pytest.raises(ConfigError, match="at least 16x16"):
        qs.nn.conv4(classes=5, downsample="pool", size=12)
    with pytest.raises(ConfigError, match="Did you mean 'relu'"):
        qs.nn.mlp(1, 1, activation="rely")


def test_one_value_per_channel_has_no_variance():
    with pytest.raises(DataError, match="more than one value per channel"):
        BatchNorm(3)(torch.ones(1, 3))


def test_batch_norm_without_scale_and_shift():
    ours, torchs = BatchNorm(3, affine=False), nn.BatchNorm1d(3, affine=False)
    x = torch.randn(5, 3)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)


def test_mlp_layers():
    sizes = [tuple(p.shape) for p in qs.nn.mlp(6, 2, hidden=(5, 4)).parameters()]
    assert sizes == [(5, 6), (5,), (4, 5), (4,), (2, 4), (2,)]
    assert qs.nn.mlp(6, 2, hidden=())(torch.zeros(3, 2, 3)).shape == (3, 2)
    assert qs.nn.mlp(6, hidden=(5, 4))(torch.zeros(3, 6)).shape == (3, 4)


@pytest.mark.parametrize(("name", "function"), [("relu", torch.relu), ("tanh", torch.tanh), ("gelu", F.gelu)])
def test_mlp_has_the_activation_that_is_named_between_its_layers(name, function):
    net, x = qs.nn.mlp(6, 2, hidden=(5, 4), activation=name), torch.randn(3, 6)
    h = function(x @ net.layer1.weight.T + net.layer1.bias)
    h = function(h @ net.layer2.weight.T + net.layer2.bias)
    assert torch.allclose(net(x), h @ net.head.weight.T + net.head.bias, atol=1e-6)


# --- maps, residual networks, dropped blocks, relations --------------------------------------------------------------


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_conv4_maps_halve_the_image_twice_and_stay_maps(downsample):
    net = qs.nn.conv4(filters=4, downsample=downsample, maps=True)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 4, 7, 7)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in qs.nn.conv4(filters=4).parameters())
    with pytest.raises(ConfigError, match="leave classes out"):
        qs.nn.conv4(classes=5, maps=True)


def test_resnet12_has_the_published_size():
    """No bias; a shortcut of 1x1 beside three convolutions of 3x3; four normalisations of two numbers a channel."""
    count = 0
    for a, b in itertools.pairwise((3, 64, 160, 320, 640)):
        count += 9 * a * b + 2 * 9 * b * b + a * b + 4 * 2 * b
    assert sum(p.numel() for p in qs.nn.resnet12().parameters()) == count


@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
def test_resnet12_shapes_and_norms(norm):
    from quickstudy.nn.statistics import normalisation

    net = qs.nn.resnet12(1, 5, filters=2, norm=norm)
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 5) and normalisation(net) == norm
    assert qs.nn.resnet12(3, filters=2, norm=norm)(torch.zeros(2, 3, 40, 40)).shape == (2, 20)
    assert qs.nn.resnet12(3, filters=2, norm=norm, maps=True)(torch.zeros(2, 3, 40, 40)).shape == (2, 20, 2, 2)


def test_resnet12_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match="even"):
        qs.nn.resnet12(filters=3)
    with pytest.raises(ConfigError, match="leave classes out"):
        qs.nn.resnet12(classes=5, maps=True)
    with pytest.raises(ConfigError, match="below 1"):
        qs.nn.resnet12(dropblock=1.0)


def test_pixels_are_the_image_itself_or_averages_of_it():
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(qs.nn.pixels(3, side=8)(x), x.flatten(1))
    blocks = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    assert torch.allclose(qs.nn.pixels(3, side=4)(x), blocks.flatten(1))
    assert qs.nn.pixels(1, 5)(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    with pytest.raises(ConfigError, match="at least 1"):
        qs.nn.pixels(side=0)


def test_resnet12_in_second_order_is_the_same_on_every_engine_and_right():
    """MAML through the whole network, in float64; leaky kinks and poolings included."""
    from problems import assert_close, clusters, meta_gradient

    torch.set_default_dtype(torch.float64)
    tasks = clusters((1, 16, 16), ways=2, shots=2, queries=1)
    learner = qs.MAML(qs.nn.resnet12(1, 2, filters=2), lr=0.1, steps=1)
    theta, episodes = learner.init(), tasks.sample(2, torch.Generator().manual_seed(0))
    loss, slope = meta_gradient(learner, theta, episodes, "loop")
    for name in ("threads", "vmap"):
        other = meta_gradient(learner, theta, episodes, name)
        assert_close(other[0], loss, 1e-10)
        assert_close(other[1], slope, 1e-9)
    drawn = torch.Generator().manual_seed(1)
    towards = {n: torch.randn(v.shape, generator=drawn) * (v.abs().mean() + 0.01) for n, v in theta.items()}
    ends = [
        float(qs.meta_gradient(learner, {n: v + s * 1e-6 * towards[n] for n, v in theta.items()}, episodes)[0])
        for s in (1, -1)
    ]
    wanted = (ends[0] - ends[1]) / 2e-6
    assert sum(float((slope[n] * towards[n]).sum()) for n in theta) == pytest.approx(wanted, rel=1e-4)


def test_dropblock_takes_whole_squares_and_keeps_the_sum():
    layer, x = DropBlock(0.2, 3), torch.ones(200, 4, 9, 9)
    torch.manual_seed(0)
    y = layer(x)
    gone = y == 0
    assert 0.1 < float(gone.float().mean()) < 0.25  # squares overlap, so somewhat less than a fifth
    assert float(y.sum()) == pytest.approx(float(x.sum()), rel=1e-4)
    assert len(y[~gone].unique()) == 1
    # Every zero lies in a square of zeros: closing the holes by opening with a 3x3 square changes nothing.
    eroded = F.max_pool2d(1 - gone.float(), 3, stride=1) == 0  # corners of squares that are all zeros
    assert torch.equal(F.max_pool2d(F.pad(eroded.float(), [2] * 4), 3, stride=1) == 1, gone)


def test_dropblock_is_still_in_eval_mode_and_on_small_maps():
    x = torch.ones(50, 2, 2, 2)
    assert torch.equal(DropBlock(0.5).eval()(x), x)
    assert torch.equal(DropBlock(0.0)(x), x)
    kept = DropBlock(0.5)(x).flatten(2).amax(2) > 0  # the block is the whole map
    assert 0.3 < float(kept.float().mean()) < 0.7


def test_dropblock_draws_for_each_task_of_a_vmap():
    x = torch.ones(8, 1, 1, 6, 6)
    torch.manual_seed(0)
    drawn = torch.func.vmap(DropBlock(0.3, 2), randomness="different")(x)
    assert len({tuple(t.flatten().tolist()) for t in drawn}) > 4


@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 1, 1), (6,)])
def test_a_relation_is_that_of_the_joined_features(shape):
    net = qs.nn.relation(shape, filters=4, norm="layer")
    classes, examples = torch.randn(3, *shape), torch.randn(5, *shape)
    scores = net(classes, examples)
    a, b = net.of_class, net.of_example
    weight = torch.cat([a.weight, b.weight], 1)
    for j in range(5):
        for k in range(3):
            pair = torch.cat([classes[k], examples[j]])[None]
            first = F.conv2d(pair, weight, b.bias, padding=1) if len(shape) == 3 else F.linear(pair, weight, b.bias)
            assert torch.allclose(net.rest(first).squeeze(), scores[j, k], atol=1e-5)


def test_a_relation_needs_maps_or_vectors():
    with pytest.raises(ConfigError, match="maps"):
        qs.nn.relation((3, 4))
