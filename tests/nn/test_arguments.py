"""How inputs become the arguments of a module, and what of its output is the answer."""

from collections import OrderedDict

import pytest
import torch
from problems import Mixed, by_name, in_order
from torch import Tensor, nn
from torch.func import vmap

from quickstudy.nn import hooks
from quickstudy.nn.model import arguments, call, without_chance
from quickstudy.nn.parameters import parameters

pytestmark = pytest.mark.usefixtures("double")


class Own(OrderedDict):
    """An output with a class of its own, as a model of the transformers library gives one."""


class Gives(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict:
        return self.kind(logits=self.linear(x), hidden=x)


def test_a_dict_gives_arguments_by_name_and_a_tuple_in_order():
    net, x = Mixed(), torch.randn(5, 4)
    theta = {name: value + 0.1 for name, value in parameters(net).items()}
    swapped = dict(reversed(by_name(x).items()))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(theta[name])
        wanted = net(**by_name(x))
    for given in (by_name(x), swapped, in_order(x)):
        assert torch.equal(call(net, theta, given), wanted)
    assert arguments([x]) == (([x],), {})  # a list is one argument


def test_arguments_by_name_are_mapped_over_tasks():
    net, x = Mixed(), torch.randn(3, 5, 4)
    theta = parameters(net)
    together = vmap(lambda inputs: call(net, theta, inputs))(by_name(x))
    assert torch.allclose(together, torch.stack([call(net, theta, by_name(one)) for one in x]))


def test_an_output_of_its_own_class_gives_its_logits_and_a_plain_dict_stays_whole():
    x = torch.randn(3, 4)
    own, plain = Gives(Own), Gives(dict)
    assert torch.equal(call(own, {}, x), own.linear(x))
    assert call(plain, {}, x).keys() == {"logits", "hidden"}


def test_hooks_see_layers_of_a_model_with_named_inputs():
    net, x = Mixed(), torch.randn(5, 4)
    theta = parameters(net)
    features = hooks.input_of("head", net, theta, by_name(x))
    assert torch.equal(hooks.below_head(net, theta, by_name(x), "head."), features)
    assert hooks.outputs_of(["values", "kinds"], net, theta, by_name(x)).keys() == {"values", "kinds"}


def test_a_rate_of_dropout_under_any_name_is_switched_off():
    layer = nn.Linear(2, 2)
    layer.attention_dropout, layer.dropout_prob, layer.keep = 0.5, 0.1, 0.5  # type: ignore[assignment]
    net = without_chance(nn.Sequential(layer, nn.Dropout(0.3)))
    assert layer.attention_dropout == layer.dropout_prob == net[1].p == 0.0
    assert layer.keep == 0.5 and layer.training and not net[1].training
