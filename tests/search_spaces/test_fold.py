"""BatchNorm folded into convolutions: where it belongs, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from delta_teachers import HRNet, PreActivation, ResNet, UNet, conv_norm, trained
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nas_kd.search_spaces.delta_blocks.fold import fold_batchnorm


def norms(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]


def frame(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (ResNet, []),
        (HRNet, []),
        (UNet, []),
        (PreActivation, ["blocks.0.norm1", "blocks.1.norm1", "blocks.2.norm1", "norm"]),
    ],
)
def test_what_follows_a_convolution_is_folded_and_the_output_stays(
    build: Callable[[], nn.Module], left: list[str]
) -> None:
    net = trained(build())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded = fold_batchnorm(net, frame())
    assert norms(folded) == left
    with torch.no_grad():
        torch.testing.assert_close(folded(frame(2)), net(frame(2)), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()), "the model is a copy"
    assert norms(net)


class Odd(nn.Module):
    """Normalisations that must stay, each for its own reason, and one that goes."""

    def __init__(self) -> None:
        super().__init__()
        self.good = conv_norm(3, 4)
        self.shared, self.norm_a, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.read, self.norm_c = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.changed, self.norm_d = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.before = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good(x)
        x = self.norm_a(self.shared(x)) + self.norm_b(self.shared(x))
        y = self.read(x)
        x = self.norm_c(y) + F.relu(y)
        x = self.norm_d(F.relu_(self.changed(x)))
        return self.batch(self.before(x))


def test_only_a_convolution_that_nothing_else_reads_takes_its_normalisation() -> None:
    net = trained(Odd(), seed=3)
    folded = fold_batchnorm(net, frame())
    assert norms(folded) == ["norm_a", "norm_b", "norm_c", "norm_d", "batch"]
    with torch.no_grad():
        torch.testing.assert_close(folded(frame(2)), net(frame(2)), rtol=1e-4, atol=1e-4)


class Hidden(nn.Module):
    """Normalisations that must stay although the output hardly shows it, or does not show it at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.good = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.scaled, self.norm_a = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.watched, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.given, self.norm_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied, self.norm_d, self.twin = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.twin.weight = self.tied.weight
        self.hooked, self.norm_e = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.hooked.register_forward_hook(lambda _module, _inputs, output: output.clamp_max(2))
        self.layer_scale = nn.Parameter(torch.full((4, 1, 1), 1e-8))
        self.largest = 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.good(self.stem(x))
        y = self.scaled(x)
        x = x + self.layer_scale * (self.norm_a(y) + F.relu(y))
        y = self.watched(x)
        self.largest = float(y.max())  # read, but without any effect on the output
        x = x + self.layer_scale * self.norm_b(y)
        x = x + self.layer_scale * self.norm_d(self.tied(x)) + self.layer_scale * self.twin(x)
        x = x + self.norm_e(self.hooked(x))
        y = self.given(x)
        return self.norm_c(y), y


def test_what_is_folded_does_not_depend_on_the_weights() -> None:
    stay = ["norm_a", "norm_b", "norm_c", "norm_d", "norm_e"]
    untrained = Hidden().eval()
    assert norms(fold_batchnorm(untrained, frame())) == stay
    assert norms(fold_batchnorm(trained(Hidden(), seed=3), frame())) == stay
    odd = Odd().eval()  # a fresh BatchNorm is almost the identity
    assert norms(fold_batchnorm(odd, frame())) == norms(fold_batchnorm(trained(Odd()), frame()))


def test_a_normalisation_with_two_names_is_folded_under_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.listed = nn.ModuleList([self.norm])

        def forward(self, x: Tensor) -> Tensor:
            return self.listed[0](self.conv(x))  # type: ignore[no-any-return]

    net = trained(Twice())
    folded = fold_batchnorm(net, frame())
    assert norms(folded) == []
    with torch.no_grad():
        torch.testing.assert_close(folded(frame(2)), net(frame(2)), rtol=1e-4, atol=1e-4)


def test_a_net_in_training_is_folded_as_it_would_be_evaluated_and_stays_in_training() -> None:
    net = trained(ResNet()).train()
    folded = fold_batchnorm(net, frame())
    assert net.training
    assert not folded.training
    assert net.stem[1].num_batches_tracked == 0
    with torch.no_grad():
        torch.testing.assert_close(folded(frame(2)), net.eval()(frame(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bias", "affine"), [(True, True), (False, True), (True, False)])
def test_the_arithmetic_is_that_of_torch(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5, affine=affine)).double()
    for tensor in (*net[1].parameters(), *net[1].buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    expected = fuse_conv_bn_eval(net[0].eval(), net[1].eval())
    folded = fold_batchnorm(net, frame().double()).get_submodule("0")
    torch.testing.assert_close(folded.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-12)
