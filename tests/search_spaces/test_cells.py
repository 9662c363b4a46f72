"""`Sliced`: one large weight that runs at every width, and mixtures of widths."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from nas_kd.search_spaces.cells import mix_widths
from nas_kd.search_spaces.clip_cell.ops import CandidateOps
from nas_kd.search_spaces.gates import Draw, Gate
from nas_kd.search_spaces.slices import Sliced

OPS = ("conv2d_k3", "conv2plus1d_k3", "conv3d_k3", "separable_k3_e2", "separable3d_k5_e1", "shift_k3")


def pair(op: str, c_in: int, c_out: int) -> tuple[Sliced, nn.Module, Tensor]:
    """A sliced operator, a plain one of the narrow width with copies of the slices, and an input."""
    torch.manual_seed(0)
    build = partial(CandidateOps(), op=op, stride=2)
    sliced, narrow = Sliced(build, 8, 12), build(c_in, c_out)
    for name, buffer in sliced.full.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    for name, own in [*narrow.named_parameters(), *narrow.named_buffers()]:
        source = dict([*sliced.full.named_parameters(), *sliced.full.named_buffers()])[name]
        own.data.copy_(source.data[tuple(slice(n) for n in own.shape)])
    return sliced, narrow, torch.randn(2, c_in, 3, 7, 7)


@pytest.mark.parametrize("widths", [(4, 6), (8, 6), (4, 12), (8, 12)])
@pytest.mark.parametrize("op", OPS)
def test_equals_the_narrow_module_in_both_modes_statistics_and_gradients(op: str, widths: tuple[int, int]) -> None:
    sliced, narrow, x = pair(op, *widths)
    outside = {name: buffer.clone() for name, buffer in sliced.full.named_buffers()}
    for training in (True, False, True):
        out, expected = sliced.train(training)(x, *widths), narrow.train(training)(x)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
    buffers = dict(narrow.named_buffers())
    for name, buffer in sliced.full.named_buffers():
        block = tuple(slice(n) for n in buffers[name].shape)
        torch.testing.assert_close(buffer[block], buffers[name])
        rest = torch.ones_like(buffer, dtype=torch.bool)
        rest[block] = False
        assert torch.equal(buffer[rest], outside[name][rest]), "statistics of channels that did not run must not move"
    parameters = dict(narrow.named_parameters())
    for name, p in sliced.full.named_parameters():
        block = tuple(slice(n) for n in parameters[name].shape)
        assert p.grad is not None
        torch.testing.assert_close(p.grad[block], parameters[name].grad, rtol=1e-4, atol=1e-4)
        rest = torch.ones_like(p, dtype=torch.bool)
        rest[block] = False
        assert not p.grad[rest].any(), "weights of channels that did not run have no gradient"


def test_narrowed_is_a_copy_that_fits_the_narrow_module() -> None:
    sliced, narrow, x = pair("separable_k3_e2", 4, 6)
    state = sliced.narrowed(4, 6)
    narrow.load_state_dict(state)
    torch.testing.assert_close(narrow.eval()(x), sliced.eval()(x, 4, 6))
    owned = {t.untyped_storage().data_ptr() for t in sliced.state_dict().values()}
    assert owned.isdisjoint(t.untyped_storage().data_ptr() for t in state.values())


def test_copies_are_independent_and_the_state_dict_holds_only_the_full_width() -> None:
    sliced, _, x = pair("conv2d_k3", 4, 6)
    sliced.eval()
    before = sliced(x, 4, 6)
    assert all(name.startswith("full.") for name in sliced.state_dict())
    clone = copy.deepcopy(sliced)
    with torch.no_grad():
        for p in clone.parameters():
            p.zero_()
    assert torch.equal(sliced(x, 4, 6), before)
    assert torch.count_nonzero(clone.full[0].weight) == 0  # type: ignore[index]
    torch.testing.assert_close(sliced.double()(x.double(), 4, 6).float(), before)


def test_a_mixture_of_widths_pads_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {2: torch.ones(1, 2, 1, 1, 1), 4: 10 * torch.ones(1, 4, 1, 1, 1)}
    gate = Gate((2, 3, 4))
    monkeypatch.setattr(gate, "draw", lambda: Draw((0, 2), torch.tensor([0.25, 0.75])))
    assert mix_widths(gate, outputs.__getitem__).flatten().tolist() == [7.75, 7.75, 7.5, 7.5]
    monkeypatch.setattr(gate, "draw", lambda: Draw((0,), torch.ones(1)))
    assert mix_widths(gate, outputs.__getitem__).shape[1] == 2
