import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.local import LocallyConnected2d, LocalView
from prunekit_deepid2plus.plugin import prunekit_layer_views
from torch import Tensor, nn


def by_loops(layer: LocallyConnected2d, weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    rows, columns = layer.output_size
    size, stride = layer.kernel_size, layer.stride
    outputs = torch.zeros(len(inputs), layer.out_channels, rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            patch = inputs[:, :, row * stride : row * stride + size, column * stride : column * stride + size]
            for out in range(layer.out_channels):
                outputs[:, out, row, column] = (patch * weight[row, column, out]).sum((1, 2, 3))
                if bias is not None:
                    outputs[:, out, row, column] += bias[row, column, out]
    return outputs


def make(*, bias: bool = True, stride: int = 1, channels: int = 3) -> tuple[LocallyConnected2d, Tensor]:
    torch.manual_seed(0)
    layer = LocallyConnected2d(channels, 4, (7, 6), 3, stride, bias=bias)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer, torch.randn(5, channels, 7, 6)


@settings(deadline=None, max_examples=12)
@given(bias=st.booleans(), stride=st.integers(1, 3), channels=st.integers(1, 4), channels_last=st.booleans())
def test_outputs_and_gradients_equal_a_loop_over_positions(
    bias: bool, stride: int, channels: int, channels_last: bool
) -> None:
    layer, inputs = make(bias=bias, stride=stride, channels=channels)
    order = torch.channels_last if channels_last else torch.contiguous_format
    given_inputs = inputs.clone(memory_format=order).requires_grad_()
    outputs = layer(given_inputs)
    upstream = torch.randn_like(outputs)
    outputs.backward(upstream)

    exact = [p.detach().double().requires_grad_() for p in layer.parameters()]
    exact_inputs = inputs.double().requires_grad_()
    expected = by_loops(layer, exact[0], exact[1] if bias else None, exact_inputs)
    expected.backward(upstream.double())
    torch.testing.assert_close(outputs.double(), expected, atol=1e-5, rtol=1e-5)
    assert given_inputs.grad is not None
    torch.testing.assert_close(given_inputs.grad.double(), exact_inputs.grad, atol=1e-5, rtol=1e-5)
    for parameter, reference in zip(layer.parameters(), exact, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), reference.grad, atol=1e-4, rtol=1e-5)


def test_bf16_autocast_computes_in_bf16_and_keeps_the_weights_in_float32() -> None:
    layer, inputs = make()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(inputs)
    outputs.float().sum().backward()
    assert outputs.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(outputs.float(), layer(inputs), atol=0.1, rtol=0.02)


def test_the_layer_works_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = LocallyConnected2d(3, 4, (7, 6), 3)
        assert layer(torch.empty(2, 3, 7, 6)).shape == (2, 4, 5, 4)


def test_a_module_with_the_layer_can_be_put_in_channels_last_order() -> None:
    layer, inputs = make()
    before = layer(inputs)
    nn.Sequential(layer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(layer(inputs), before)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_products_of_the_view_are_the_outputs(stride: int) -> None:
    layer, inputs = make(bias=False, stride=stride)
    view = LocalView(layer)
    everything = slice(0, view.positions(inputs))
    seen = view.inputs_at(inputs, everything)
    matrix = view.to_matrix(layer.weight)
    rows, columns = layer.output_size
    assert seen.shape == (rows * columns, 1, 5, 27)
    assert matrix.shape == (rows * columns, 4, 27)
    found = view.outputs_at(layer(inputs), everything)
    torch.testing.assert_close(torch.einsum("gmsf,gof->gmso", seen, matrix), found)
    assert torch.equal(view.from_matrix(matrix), layer.weight)
    only = torch.arange(1)
    cells = view.cells(inputs, only)[view.taps(inputs, only)]  # [taps, groups, samples, channels]
    assert torch.equal(cells.permute(1, 2, 3, 0).reshape(seen[:, 0].shape), seen[:, 0])
    assert torch.equal(view.units(layer(inputs), only), found[:, 0])


def test_the_plugin_views_locally_connected_layers_and_no_others() -> None:
    layer, _ = make()
    view = prunekit_layer_views(layer)
    assert view is not None
    shape = view.shape("local5a")
    assert (shape.kind, shape.groups, shape.outputs, shape.fan_shape) == ("locally connected", 20, 4, (3, 3, 3))
    assert prunekit_layer_views(nn.Linear(2, 2)) is None
