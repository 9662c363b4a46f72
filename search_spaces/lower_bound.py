"""FLOPs of a net that may do what no counter sees: exact, or a lower bound with its reasons.

A traced graph holds what leads to the output of one pass. What a net computes besides, what it computes outside of
torch, and what it computes for other inputs, is not in it. So the net also runs as it is under torch's own counter,
which sees every product that runs, on two inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.search_spaces.flops import count_flops, in_evaluation

UNUSED = "work that the output does not depend on, or that leaves torch"
BY_VALUE = "work that depends on the values of the input"


def count_products(module: nn.Module, example: Any) -> int:
    """FLOPs of the matrix products, convolutions and fused attention of `module(example)`, in evaluation mode.

    It runs the module as it is, by the counter of torch.

    Args:
        module: any module.
        example: its input, a tensor or a list of them, at the shapes that matter.
    """
    # Attention as two products: torch does not count the fused forms on all devices.
    with in_evaluation(module), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(example)
    return int(counter.get_total_flops()) // 2  # torch counts multiplications and additions


def bounded_flops(module: nn.Module, example: Any) -> tuple[int, tuple[str, ...]]:
    """FLOPs of `module(example)`, and what they may miss: with any of it, they are a lower bound.

    Args:
        module: any module.
        example: its input, a tensor or a list of them, at the shapes that matter, with random values: an input whose
            values are all alike shows whether the FLOPs depend on them.
    """
    products = _products_or_none(module, example)
    try:
        count = count_flops(module, (example,), strict=False)
    except Exception as error:  # whatever a net raises that cannot be traced, though it runs
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        what = "all" if products is None else "all but products and convolutions"
        return products or 0, (f"{what}; not traceable, {reason}",)
    missing, total = list(count.unknown), count.total
    if products is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            of_flat = _products_or_none(module, _flat(example))
        if of_flat is not None and of_flat != products:
            missing.append(BY_VALUE)
            total -= max(products - of_flat, 0)
        if products > count.products:
            total += products - count.products
            if not count.unknown:  # else it may be theirs
                missing.append(UNUSED)
    return max(total, 0), tuple(missing)


def _flat(example: Any) -> Any:
    """An input of the same shape whose values are all 0, or as near to 0 as those of the example come."""
    if not isinstance(example, Tensor):
        return [_flat(each) for each in example]
    low, high = (float(value) for value in example.aminmax())
    return torch.full_like(example, min(max(low, 0), high))


def _products_or_none(module: nn.Module, example: Any) -> int | None:
    """None where torch's counter does not run the module."""
    try:
        return count_products(module, example)
    except Exception:  # whatever torch raises in a net of the user that runs without the counter
        return None
