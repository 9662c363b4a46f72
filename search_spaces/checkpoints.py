"""`torch.utils.checkpoint` without recomputation, for passes that need no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint


@contextmanager
def checkpoints_run_directly() -> Iterator[list[str]]:
    """While it is open, `torch.utils.checkpoint.checkpoint` calls its function, whose work a tracer then sees.

    Without gradients there is nothing to recompute. Both forms of torch are meant, `use_reentrant` true and false.

    Yields:
        A list that gets the form of each call.
    """
    module, calls = torch.utils.checkpoint, list[str]()

    class Direct:
        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            calls.append("reentrant")
            return function(*args)

    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        calls.append("not reentrant")
        yield  # torch calls the function between the two parts

    originals = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    module.CheckpointFunction = Direct  # type: ignore[misc,assignment]
    module._checkpoint_without_reentrant_generator = generator
    try:
        yield calls
    finally:
        module.CheckpointFunction = originals[0]  # type: ignore[misc]
        module._checkpoint_without_reentrant_generator = originals[1]
