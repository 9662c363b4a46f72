"""An operator of your own: a large depthwise kernel over each frame and a short one over time (docs/extending.md).

`space: {name: clip_cell, ops: [conv2d_k3, "large_kernel:large_kernel", identity, zero]}`
"""

from torch import nn


def large_kernel(c_in, c_out, stride, kernel=13):
    """Depthwise, then 1×1, as in ConvNeXt and RepLKNet (Liu et al., Ding et al., CVPR 2022), here for clips."""
    side = kernel // 2
    return nn.Sequential(
        nn.Conv3d(c_in, c_in, (1, kernel, kernel), (1, stride, stride), (0, side, side), groups=c_in, bias=False),
        nn.Conv3d(c_in, c_in, (3, 1, 1), padding=(1, 0, 0), groups=c_in, bias=False),
        nn.BatchNorm3d(c_in),
        nn.Conv3d(c_in, c_out, 1, bias=False),
        nn.BatchNorm3d(c_out),
    )
