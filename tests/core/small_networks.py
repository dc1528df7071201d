"""Small random networks, one for each shape that real classifiers have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from network_parts import SHAPE, Net, conv_bn, head, pooled
from torch import Tensor, nn
from torch.nn import functional as F


def plain() -> nn.Module:
    return Net(
        lambda m, x: m.fc(pooled(F.relu(m.b(F.max_pool2d(F.relu(m.a(x)), 2))))),
        a=conv_bn(3, 8),
        b=conv_bn(8, 12, bias=True),
        fc=head(12),
    )


def residual() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = F.relu(m.b(F.relu(m.a(x))) + x)
        x = F.relu(m.d(F.relu(m.c(x))) + m.short(x))
        return m.fc(pooled(x))

    return Net(
        forward,
        stem=conv_bn(3, 8),
        a=conv_bn(8, 8),
        b=conv_bn(8, 8),
        c=conv_bn(8, 12, stride=2),
        d=conv_bn(12, 12),
        short=conv_bn(8, 12, 1, stride=2),
        fc=head(12),
    )


def linear_bottleneck() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu6(m.stem(x))
        x = m.project(F.relu6(m.depthwise(F.relu6(m.expand(x))))) + x  # a sum without an activation behind it
        return m.fc(pooled(x))

    return Net(
        forward,
        stem=conv_bn(3, 6),
        expand=conv_bn(6, 18, 1),
        depthwise=conv_bn(18, 18, groups=18),
        project=conv_bn(18, 6, 1),
        fc=head(6),
    )


def concat() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        return m.fc(pooled(torch.cat([F.relu(m.a(x)), F.relu(m.b(x)), F.max_pool2d(x, 3, 1, 1)], 1)))

    return Net(forward, stem=conv_bn(3, 6), a=conv_bn(6, 4), b=conv_bn(6, 5, 1), fc=head(15))


def mixed_concat() -> nn.Module:
    """Operands of both signs: the kernel requantizes through tables."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        return m.fc(pooled(F.relu(m.last(torch.cat([m.a(x), torch.sigmoid(m.b(x)), x], 1)))))

    return Net(forward, stem=conv_bn(3, 6), a=conv_bn(6, 4), b=conv_bn(6, 5, 1), last=conv_bn(15, 8, 1), fc=head(8))


def dense() -> nn.Module:
    """DenseNet's order: batch norm, activation, convolution, so that batch norm cannot fold backwards."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        x = torch.cat([x, m.a(F.relu(m.norm_a(x)))], 1)
        x = torch.cat([x, m.b(F.relu(m.norm_b(x)))], 1)
        return m.fc(pooled(F.relu(m.norm_last(x))))

    return Net(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        norm_a=nn.BatchNorm2d(6),
        a=nn.Conv2d(6, 4, 3, padding=1, bias=False),
        norm_b=nn.BatchNorm2d(10),
        b=nn.Conv2d(10, 4, 3, padding=1, bias=False),
        norm_last=nn.BatchNorm2d(14),
        fc=head(14),
    )


def shuffle() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, F.relu(m.branch(right))], 1)
        return m.fc(pooled(x))

    return Net(forward, stem=conv_bn(3, 12), branch=conv_bn(6, 6, groups=3), fc=head(12))


def leaky() -> nn.Module:
    return Net(
        lambda m, x: m.fc(pooled(F.leaky_relu(m.b(F.leaky_relu(m.a(x), 0.1)), 0.1))),
        a=conv_bn(3, 8),
        b=conv_bn(8, 12, stride=2),
        fc=head(12),
    )


def squeeze_excite() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.fc(pooled(F.relu(m.last(x * gate))))

    return Net(
        forward, stem=conv_bn(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), last=conv_bn(8, 8), fc=head(8)
    )


def silu() -> nn.Module:
    return Net(lambda m, x: m.fc(pooled(F.silu(m.b(F.silu(m.a(x)))))), a=conv_bn(3, 8), b=conv_bn(8, 8), fc=head(8))


def hard_swish() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.hardswish(m.a(x))
        gate = F.hardsigmoid(m.up(F.adaptive_avg_pool2d(x, 1)))
        return m.fc(F.hardswish(m.b(pooled(x * gate))))

    return Net(forward, a=conv_bn(3, 8), up=nn.Conv2d(8, 8, 1), b=nn.Linear(8, 8), fc=head(8))


def asymmetric_padding() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(F.pad(x, (0, 1, 0, 1))))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 2)
        return m.fc(pooled(F.relu(m.b(x))))

    return Net(forward, a=conv_bn(3, 8, stride=2, padding=0), b=conv_bn(8, 8, 2, padding=0), fc=head(8))


def same_padding() -> nn.Module:
    layer = nn.Conv2d(3, 8, 4, padding="same")
    return Net(lambda m, x: m.fc(pooled(F.relu(m.norm(m.a(x))))), a=layer, norm=nn.BatchNorm2d(8), fc=head(8))


def ceil_pool() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.a(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(F.relu(m.b(x)), 2, 2, 1, ceil_mode=True)
        return m.fc(pooled(x))

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), fc=head(8))


def average_pools() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(m.a(x)), 3, 2, 1)
        x = F.avg_pool2d(m.b(x), 3, 1, 1, count_include_pad=False)
        return m.fc(F.adaptive_avg_pool2d(F.relu(m.c(x)), 2).flatten(1))

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), c=conv_bn(8, 6), fc=head(24))


def split_and_slice() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        first, second, third = torch.split(x, [2, 4, 6], 1)
        x = torch.cat([F.relu(m.b(second)), third[:, ::2], first], 1)
        return m.fc(pooled(x[:, :, 1:, :-1]))

    return Net(forward, a=conv_bn(3, 12), b=conv_bn(4, 4), fc=head(9))


def dropout_and_view() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.a(x)), 4)
        x = m.drop(x.view(x.size(0), -1))
        return m.fc(m.drop(F.relu(m.norm(m.hidden(x)))))

    return Net(
        forward,
        a=conv_bn(3, 8),
        hidden=nn.Linear(32, 16),
        norm=nn.BatchNorm1d(16),
        drop=nn.Dropout(0.5),
        fc=head(16),
    )


def softmax_end() -> nn.Module:
    return Net(
        lambda m, x: F.softmax(m.fc(torch.flatten(F.relu(m.a(x)).mean((2, 3)), 1)), dim=-1),
        a=conv_bn(3, 8),
        fc=head(8),
    )


def one_logit() -> nn.Module:
    """Two classes by the sign of one number."""
    return Net(
        lambda m, x: m.fc(pooled(F.relu(m.b(F.relu(m.a(x)))))), a=conv_bn(3, 8), b=conv_bn(8, 12), fc=head(12, 1)
    )


def sigmoid_end() -> nn.Module:
    """Several labels at once: each output is a decision of its own."""
    return Net(lambda m, x: torch.sigmoid(m.fc(pooled(F.relu(m.a(x))))), a=conv_bn(3, 8), fc=head(8, 4))


def squeeze_end() -> nn.Module:
    """SqueezeNet's ending: the classifier is a convolution with an activation, the logits are a mean."""
    return Net(
        lambda m, x: F.adaptive_avg_pool2d(F.relu(m.last(F.relu(m.a(x)))), 1).view(x.shape[0], -1),
        a=conv_bn(3, 8),
        last=nn.Conv2d(8, 5, 1),
    )


def conv_end() -> nn.Module:
    """DarkNet's ending: the classifier is a convolution, the logits are a mean."""
    return Net(
        lambda m, x: F.adaptive_avg_pool2d(m.last(F.relu(m.a(x))), 1).view(x.shape[0], -1),
        a=conv_bn(3, 8),
        last=nn.Conv2d(8, 5, 1),
    )


def pointwise_end() -> nn.Module:
    """MobileNetV2 of pytorchcv: a 1x1 convolution of the pooled map is the classifier."""
    return Net(
        lambda m, x: m.last(F.adaptive_avg_pool2d(F.relu(m.a(x)), 1)).view(x.shape[0], -1),
        a=conv_bn(3, 8),
        last=nn.Conv2d(8, 5, 1, bias=False),
    )


def upsampled() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        up = F.interpolate(F.relu(m.b(x)), scale_factor=2, mode="nearest")
        return m.fc(pooled(F.relu(up + x)))

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8, stride=2), fc=head(8))


def learned_scale() -> nn.Module:
    """Layer scale: a parameter takes part in the arithmetic."""
    return Net(
        lambda m, x: m.fc(pooled(F.relu(m.a(x)) + m.b(F.relu(m.a(x))) * m.gamma)),
        a=conv_bn(3, 8),
        b=conv_bn(8, 8, 1),
        gamma=nn.Parameter(torch.linspace(-0.5, 1.0, 8).view(1, 8, 1, 1)),
        fc=head(8),
    )


def gray() -> nn.Module:
    return Net(lambda m, x: m.fc(pooled(F.relu(m.a(x)))), a=conv_bn(1, 8, 5), fc=head(8))


def parametric() -> nn.Module:
    """PReLU, with a slope a channel and with one for all."""
    return Net(
        lambda m, x: m.fc(pooled(m.one(m.b(m.many(m.a(x)))))),
        a=conv_bn(3, 8),
        many=nn.PReLU(8, init=0.3),
        b=conv_bn(8, 8),
        one=nn.PReLU(),
        fc=head(8),
    )


def selective() -> nn.Module:
    """SKNet's choice between branches: stack, sum, softmax in the middle."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = torch.stack([F.relu(m.a(x)), F.relu(m.b(x))], 1)
        w = m.choose(F.adaptive_avg_pool2d(y.sum(1), 1)).view(x.shape[0], 2, 8)
        return m.fc(pooled((y * F.softmax(w, 1).unsqueeze(-1).unsqueeze(-1)).sum(1)))

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(3, 8, 1), choose=nn.Conv2d(8, 16, 1), fc=head(8))


def attention() -> nn.Module:
    """CBAM: a gate that is expanded, and one from mean and maximum over channels."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        x = x * torch.sigmoid(m.gate(pooled(x))).unsqueeze(2).unsqueeze(3).expand_as(x)
        seen = torch.cat([x.max(dim=1)[0].unsqueeze(1), x.mean(dim=1).unsqueeze(1)], 1)
        return m.fc(pooled(x * torch.sigmoid(m.place(seen))))

    return Net(forward, a=conv_bn(3, 8), gate=nn.Linear(8, 8), place=nn.Conv2d(2, 1, 3, padding=1), fc=head(8))


def recurrent() -> nn.Module:
    """DIANet's LSTM cell, twice: tanh, and a state that begins as zeros."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        w = pooled(x)
        h = c = torch.zeros_like(w)
        for _ in range(2):
            i, f, g, o = (m.wx(w) + m.wh(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return m.fc(pooled(x * h.unsqueeze(-1).unsqueeze(-1)))

    return Net(forward, a=conv_bn(3, 8), wx=nn.Linear(8, 32), wh=nn.Linear(8, 32), fc=head(8))


def smooth() -> nn.Module:
    """Functions without an integer kernel."""
    return Net(lambda m, x: m.fc(pooled(F.gelu(m.b(F.elu(m.a(x)))))), a=conv_bn(3, 8), b=conv_bn(8, 8), fc=head(8))


def resampled() -> nn.Module:
    """Bilinear upsampling, and average pooling to a size that does not divide, or whose windows reach over the edge."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        up = F.interpolate(F.adaptive_avg_pool2d(x, (3, 5)), size=(8, 8), mode="bilinear", align_corners=True)
        return m.fc(pooled(m.b(F.avg_pool2d(x - up, 3, 2, ceil_mode=True))))

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(8, 8), fc=head(8))


def channel_wise() -> nn.Module:
    """ChannelNet: a 3-D convolution that slides over the channels."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        return m.fc(pooled(F.relu(m.slide(x.unsqueeze(1)).squeeze(1))))

    slide = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), bias=False)
    return Net(forward, a=conv_bn(3, 8), slide=slide, fc=head(8))


def computed_weights() -> nn.Module:
    """Weights that the model makes of its parameters: signs, and slices."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, torch.sign(m.a.weight[:6]) * 0.2, padding=1))
        return m.fc(pooled(x.index_select(1, m.order)))

    net = Net(forward, a=nn.Conv2d(3, 8, 3, bias=False), fc=head(6))
    net.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))
    return net


def rearranged() -> nn.Module:
    """Pixels stacked into channels and back, channels and places repeated: nothing but moved codes."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(F.pixel_unshuffle(x, 2)))
        x = m.b(torch.cat([x.repeat(1, 2, 1, 1), pooled(x)[:, :, None, None].repeat(1, 1, 4, 4)], 1))
        x = F.relu(m.c(F.pixel_shuffle(x, 2).tile(1, 2, 1)))
        return m.fc(pooled(F.pixel_unshuffle(x, 2).repeat_interleave(2, 1)))

    return Net(forward, a=conv_bn(12, 8), b=conv_bn(24, 8, 1), c=conv_bn(2, 4), fc=head(32))


def mirrored() -> nn.Module:
    """A highway: what a gate lets through, and the rest of another tensor; reversed and negated numbers."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        gate = torch.sigmoid(m.gate(x))
        x = gate * F.relu(m.b(x)) + (1 - gate) * x
        return m.fc(F.relu(-pooled(torch.rsub(x, m.c(x)))))

    return Net(forward, a=conv_bn(3, 8), gate=nn.Conv2d(8, 8, 1), b=conv_bn(8, 8), c=conv_bn(8, 8, 1), fc=head(8))


def mish() -> nn.Module:
    """DarkNet's activation, as one function and written out."""
    return Net(
        lambda m, x: m.fc(pooled((lambda y: y * torch.tanh(F.softplus(y)))(m.b(F.mish(m.a(x)))))),
        a=conv_bn(3, 8),
        b=conv_bn(8, 8),
        fc=head(8),
    )


def greatest() -> nn.Module:
    """The greater of two tensors on one grid, of different signs, and of one and its half."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        x = torch.maximum(torch.maximum(F.relu(a), F.relu(b)), m.c(F.relu(b)))
        return m.fc(pooled(F.relu(torch.maximum(m.d(x), a * 0.5))))

    return Net(forward, a=conv_bn(3, 8), b=conv_bn(3, 8), c=conv_bn(8, 8, 1), d=conv_bn(8, 8, 1), fc=head(8))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    function.__name__: function
    for function in (
        plain,
        residual,
        linear_bottleneck,
        concat,
        mixed_concat,
        dense,
        shuffle,
        leaky,
        squeeze_excite,
        silu,
        hard_swish,
        asymmetric_padding,
        same_padding,
        ceil_pool,
        average_pools,
        split_and_slice,
        dropout_and_view,
        softmax_end,
        one_logit,
        sigmoid_end,
        squeeze_end,
        conv_end,
        pointwise_end,
        upsampled,
        learned_scale,
        gray,
        parametric,
        selective,
        attention,
        recurrent,
        smooth,
        resampled,
        channel_wise,
        computed_weights,
        rearranged,
        mirrored,
        mish,
        greatest,
    )
}


def shape_of(name: str) -> tuple[int, int, int]:
    return (1, 8, 8) if name == "gray" else SHAPE
