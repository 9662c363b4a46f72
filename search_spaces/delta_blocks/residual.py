"""The residual form of a delta net, for inference: half of the state and no subtraction on delta frames.

    key frame:   z_0 = f(x_0), kept is r_0 = z_0 − h(x_0)
    others:      z_t = r_0 + h(x_t)

The same function as z_0 + h(x_t) − h(x_0), for linear and for non-linear h alike and for both references, since
z_t − h(x_t) = r_0 on every frame. It costs one run of h more on key frames. Equality is up to rounding, so a static
clip gives the key frame's output up to rounding, not bit by bit.
"""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor

from nas_kd.search_spaces.delta_blocks.arithmetic import Minus, Plus, PlusInPlace
from nas_kd.search_spaces.delta_blocks.fold import replace_module
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, DeltaNet
from nas_kd.search_spaces.delta_blocks.ops import LinearDelta, PairDelta, ZeroDelta, repeated


class ResidualLayer(DeltaLayer):
    """A delta layer that keeps r_0 alone.

    Args:
        layer: of a derived student; its modules are used, not copied.

    Raises:
        ValueError: the layer still has several candidates.
    """

    form = "residual"

    def __init__(self, layer: DeltaLayer) -> None:
        student = layer.student
        if student is not None and not isinstance(student, LinearDelta | PairDelta | ZeroDelta):
            raise ValueError(
                f"the residual form is one of derived students, but {layer.name} holds a {type(student).__name__}; "
                "call supernet.derive() first"
            )
        super().__init__(
            layer.teacher,
            student,
            layer.name,
            layer.context,
            layer.out_shape,
            copy_input=layer.copy_input,
            copy_output=layer.copy_output,
        )
        self.plus: Plus = PlusInPlace()  # h(x) is the layer's own, except where h may return its input
        if isinstance(student, PairDelta):
            self.plus = Plus()
        self.minus = Minus()

    def forward(self, x: Tensor) -> Tensor:
        """f(x) on a key frame, r_0 + h(x) on others."""
        context, student = self.context, self.student
        if context.phase == "key":
            assert self.teacher is not None, "a net for delta frames has no teacher layers"
            z = cast(Tensor, self.teacher(x))
            if isinstance(student, LinearDelta | PairDelta):
                context.state[self.name] = (self.minus(z, student.body(x)),)
            elif student is not None:
                context.state[self.name] = (self._kept(z),)
            return z
        if student is None:
            return self._kept(x.new_zeros(()).expand(x.shape[0], *self.out_shape))
        (residual,) = context.state[self.name]
        rows = repeated(residual, x, residual)
        if isinstance(student, ZeroDelta):
            return self._kept(rows)
        return cast(Tensor, self.plus(cast(LinearDelta | PairDelta, student).body(x), rows))


def residual_form(student: DeltaNet) -> DeltaNet:
    """A copy of a student in residual form, in evaluation mode and without gradients.

    Clip mode, `key`, `delta`, `count_flops` and exports work as before; FLOPs are those of the new form: h and one
    subtraction of the output's size more on a key frame, one subtraction of the input's size (of the output's size,
    for non-linear h) less on every other frame.

    Args:
        student: derived, on any device.

    Raises:
        ValueError: it is a supernet's net and not a derived one.
    """
    net = copy.deepcopy(student).requires_grad_(False).eval()
    for layer in net.layers().values():
        if not isinstance(layer, ResidualLayer):
            replace_module(net.net, layer, ResidualLayer(layer))
    return DeltaNet(net.net, net.keyframe_interval).eval()
