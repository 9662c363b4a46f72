"""The gradient of pointwise strided convolutions on CPU, computed in a form that oneDNN does not get wrong.

oneDNN (3.12 as in torch 2.13, and all that were looked at) first copies the pixels that such a convolution reads into a
workspace. In the gradient of the weight it counts that copy in blocks of 8 channels (16 with AVX-512), while the
workspace has the true number, so a channels-last input with fewer channels is written past its end: crashes, or other
tensors changed without a word (github.com/uxlfoundation/oneDNN, issue 6035; docs/cpu-convolutions.md).

Importing this module replaces torch's gradient for that form, in the whole process, for every module and function.
Forward passes, exported graphs, other convolutions and other devices are as before.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

FEW_CHANNELS = 16  # numbers in the widest vector register, one block of channels
CHECK_SECONDS = 5.0
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Verdict = Literal["faulty", "right", "unknown"]

_OPERATOR, _KEY = "aten::convolution_backward", "CPU"
_torch_gradients = torch.library.get_kernel(_OPERATOR, _KEY)  # before it is replaced below


def is_affected(weight: Tensor, stride: Sequence[int], padding: Sequence[int], groups: int) -> bool:
    """Whether a convolution, transposed or not, is of the form whose gradient oneDNN may get wrong.

    Args:
        weight: (C_out, C_in, ...), or (C_in, C_out, ...) of a transposed one; kernel sizes last. The second number is
            that of the channels of the larger map, which is the one that is read in steps.
        stride: along each spatial dimension.
        padding: along each spatial dimension.
        groups: of channels.
    """
    shape = weight.shape
    return (
        shape[1] < FEW_CHANNELS
        and groups == 1
        and len(shape) < 5  # three spatial dimensions take another way
        and any(step > 1 for step in stride)
        and all(size == 1 for size in shape[2:])
        and not any(padding)
    )


def _gradients(
    keys: torch.DispatchKeySet,
    grad_output: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Gradients:
    """Gradients of input, weight and bias, as `aten::convolution_backward` defines them.

    A pointwise strided convolution is the unstrided one of every `stride`-th pixel, and a transposed one gives every
    `stride`-th pixel of its output; oneDNN gets the gradients of the unstrided one right.
    """
    if not is_affected(weight, stride, padding, groups):
        return _torch_gradients.call_boxed(  # type: ignore[no-any-return]
            keys, grad_output, inputs, weight, bias_sizes, stride, padding, dilation,
            transposed, output_padding, groups, output_mask,
        )  # fmt: skip
    pixels = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
    outer, inner = (grad_output[pixels], inputs) if transposed else (grad_output, inputs[pixels])
    of_input, of_weight, of_bias = output_mask
    grad_inner, grad_weight, _ = _torch_gradients.call_boxed(
        keys, outer, inner, weight, None, [1] * len(stride), padding, dilation,
        transposed, [0] * len(stride), groups, [of_input, of_weight, False],
    )  # fmt: skip
    grad_input = None
    if of_input and transposed:
        grad_input = grad_inner
    elif of_input:
        grad_input = torch.zeros_like(inputs)
        grad_input[pixels] = grad_inner
    grad_bias = grad_output.sum([0, *range(2, grad_output.ndim)]) if of_bias else None
    return grad_input, grad_weight if of_weight else None, grad_bias


_library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
_library.impl(_OPERATOR.removeprefix("aten::"), _gradients, _KEY, with_keyset=True)  # type: ignore[no-untyped-call]


def check_cpu() -> Verdict:
    """Whether torch's own gradient goes wrong on this machine: tried in a forked process, which may crash.

    Takes some 10 to 50 milliseconds. Nothing depends on the answer: the replacement is always in place.
    """
    if sys.platform != "linux":
        return "unknown"
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child waits for none
        pid = os.fork()
    if pid == 0:
        _try_torch_gradients(writing)
    os.close(writing)
    answered = bool(select.select([reading], [], [], CHECK_SECONDS)[0])
    answer = os.read(reading, 1) if answered else b""
    os.close(reading)
    if not answered:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not answered:
        return "unknown"
    return "right" if answer == b"1" and os.waitstatus_to_exitcode(status) == 0 else "faulty"


def _try_torch_gradients(writing: int) -> None:
    """In the forked process: torch's own gradient of an affected layer, often enough for its damage to be seen."""
    import resource  # POSIX alone

    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the allocator's words on what it found
        torch.set_num_threads(1)  # the parent's threads are not here
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
        inputs = torch.linspace(-1, 1, 8 * 4 * 16 * 16).reshape(8, 16, 16, 4).permute(0, 3, 1, 2)  # channels-last
        weight = torch.linspace(-1, 1, 32).reshape(8, 4, 1, 1)
        grads = torch.linspace(-1, 1, 8 * 8 * 8 * 8).reshape(8, 8, 8, 8).permute(0, 3, 1, 2)
        expected = torch.einsum("nohw,nihw->oi", grads.double(), inputs[..., ::2, ::2].double())
        right = True
        for _ in range(20):
            found = _torch_gradients.call_boxed(
                keys, grads, inputs, weight, None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
            )[1]
            right &= bool((found[..., 0, 0] - expected).abs().max() < 1e-3)
        os.write(writing, b"1" if right else b"0")
        os._exit(0)
    except BaseException:
        os._exit(1)


def describe_check() -> str | None:
    """A sentence for a machine with the fault, on what is done about it; None elsewhere. Costs milliseconds."""
    if check_cpu() != "faulty":
        return None
    return (
        f"torch {torch.__version__} corrupts memory on this CPU in one gradient (pointwise strided convolutions of few "
        "channels, oneDNN issue 6035), which a trial run in a process of its own showed; nas_kd computes that gradient "
        "in another form, so trainings are right"
    )
