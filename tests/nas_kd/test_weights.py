"""Files with the weights of a teacher: kinds of files, names, numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from own_nets import Clips, Tied
from safetensors.torch import save_file
from torch import nn

from nas_kd.teachers.weights import load_weights, read_state, save_weights


def loaded(path: Path, net: nn.Module | None = None) -> tuple[nn.Module, list[str]]:
    notes: list[str] = []
    net = net or Clips(3)
    load_weights(net, path, notes.append)
    return net, notes


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (lambda state: state, []),
        (lambda state: prefixed(state, "module."), ["stripped 'module.'"]),
        (lambda state: prefixed(state, "_orig_mod.module."), ["stripped '_orig_mod.module.'"]),
        (lambda state: {n.replace("stages.", "stages._orig_mod."): v for n, v in state.items()}, ["'_orig_mod.'"]),
        (lambda state: {"epoch": 3, "state_dict": prefixed(state, "model.")}, ["at 'state_dict'", "'model.'"]),
        (lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, ["at 'model'"]),
        (lambda state: {"model_state": {"state_dict": state}}, ["at 'model_state.state_dict'"]),
        (lambda state: {"best": state, "lr": 0.1}, ["at 'best'"]),
    ],
)
def test_a_checkpoint_is_read_whatever_it_is_wrapped_in(tmp_path: Path, wrapped: Any, said: list[str]) -> None:
    source = Clips(3)
    torch.save(wrapped(source.state_dict()), tmp_path / "net.pth")
    net, notes = loaded(tmp_path / "net.pth")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in source.state_dict().items())
    assert len(notes) == len(said)
    assert all(words in note for words, note in zip(said, notes, strict=True)), notes


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_and_said(tmp_path: Path, kind: torch.dtype) -> None:
    source = Clips(3)
    save_file(source.to(kind).state_dict(), tmp_path / "half.safetensors")
    net, (note,) = loaded(tmp_path / "half.safetensors")
    assert torch.equal(net.state_dict()["head.weight"], source.head.weight.float())
    assert net.state_dict()["head.weight"].dtype == torch.float32
    assert f"{str(kind).removeprefix('torch.')} in" in note


def test_tied_weights_are_kept_and_may_come_once(tmp_path: Path) -> None:
    source = Tied(3)
    save_weights(source, tmp_path / "all.safetensors")
    assert read_state(tmp_path / "all.safetensors").keys() == source.state_dict().keys()
    once = {name: value for name, value in source.state_dict().items() if name not in ("b.weight", "again.weight")}
    del once["again.bias"]
    torch.save(once, tmp_path / "once.pt")
    for file in ("all.safetensors", "once.pt"):
        net, _ = loaded(tmp_path / file, Tied(3))
        assert isinstance(net, Tied)
        assert net.b.weight is net.a.weight
        assert torch.equal(net.b.weight, source.a.weight)


def test_buffers_may_be_infinite_and_weights_may_not(tmp_path: Path) -> None:
    net = Clips(3)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    save_weights(net, tmp_path / "mask.safetensors")
    other = Clips(3)
    other.register_buffer("mask", torch.zeros(2))
    assert loaded(tmp_path / "mask.safetensors", other)[0].state_dict()["mask"][1] == -torch.inf
    for value in (torch.nan, torch.inf):
        broken = Clips(3)
        broken.head.weight.data[0, 0] = value
        save_weights(broken, tmp_path / "broken.safetensors")
        with pytest.raises(ValueError, match=r"head.weight of .*broken.safetensors has values that are not finite"):
            loaded(tmp_path / "broken.safetensors")


def test_weights_without_the_scale_of_their_quantisation_are_refused(tmp_path: Path) -> None:
    state = Clips(3).state_dict()
    state["head.weight"] = (100 * state["head.weight"]).to(torch.int8)
    torch.save(state, tmp_path / "int8.pth")
    with pytest.raises(
        ValueError, match=r"head.weight of .*int8.pth must hold floating-point numbers, but has torch.int8"
    ):
        loaded(tmp_path / "int8.pth")


class Runs:
    """A pickle of this would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, state = Clips(3), Clips(3).state_dict()
    torch.save(whole, tmp_path / "module.pt")
    torch.save({"state_dict": Runs()}, tmp_path / "code.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "numbers.pt")
    torch.save({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, tmp_path / "two.pt")
    torch.save({**state, "more.weight": torch.ones(1)}, tmp_path / "more.pt")
    torch.save({name: value for name, value in state.items() if "head" not in name}, tmp_path / "less.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "more.pt").read_bytes()[:300])
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "empty.pt").touch()
    for file, words in {
        "module.pt": "holds more than tensors, .* torch.save\\(model.state_dict",
        "code.pt": "holds more than tensors",
        "numbers.pt": "must hold a state dict, .* but has epoch, lr; write it with",
        "two.pt": "but has a, b; write it with",
        "more.pt": "do not fit Clips: 1 unexpected \\(more.weight\\); give the weights of this very model",
        "less.pt": "do not fit Clips: 2 missing \\(head.weight, head.bias\\)",
        "cut.pt": "or is damaged",
        "lfs.safetensors": "pointer of Git LFS .* `git lfs pull`",
        "empty.pt": "neither safetensors nor a checkpoint of torch.save",
        "none.pt": "there is none at",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            loaded(tmp_path / file)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(tmp_path))
    with pytest.raises(ValueError, match=r"size mismatch for head.weight: \(3, 24\) in the file, \(5, 24\) in the mod"):
        loaded(_saved(whole, tmp_path / "three.pt"), Clips(5))
    assert capsys.readouterr().out == ""


def _saved(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path
