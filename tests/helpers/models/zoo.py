"""Models for the tests of the trace, as users would name them: images (B, C, H, W) to anything a loss takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from ratc_runtime.models import rat_patches
from torch import nn
from torch.utils.checkpoint import checkpoint


def mean_loss() -> Any:
    """A loss that only averages: what is compared is the model."""
    return lambda output, target: output.float().mean()


class BareRat(nn.Module):
    """RAT alone; the loss sees the groups of its finest scale, and the dictionaries are dropped."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.backbone = rat_patches.import_rat()(**arguments)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.backbone(image)[0]["x_out"]
        return out


class Chain(nn.Module):
    """Two layers with pointwise operators in float32 between them, which `torch.compile` makes one kernel of."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(768, 4096), nn.Linear(4096, 64)
        self.broken = broken

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        wide = self.first(image.flatten(1)).float()
        if self.broken:
            torch._dynamo.graph_break()
        out: torch.Tensor = self.last(torch.tanh(wide.sin() * wide.cos()))
        return out


class Uncompilable(nn.Module):
    """A layer that refuses torch's compiler, and runs without it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            raise RuntimeError("not under a compiler")
        out: torch.Tensor = self.layer(image.flatten(1))
        return out


class Detector(nn.Module):
    """RAT with a detection head: at every cell of a grid of an eighth of the image the scores of the classes and the
    distances to the four sides of a box, (B, classes + 4, H / 8, W / 8).
    """

    def __init__(self, classes: int = 5, width: int = 32, **arguments: Any) -> None:
        super().__init__()
        self.backbone = rat_patches.import_rat()(feature_dims=width, **arguments)
        self.tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(inplace=True))
        self.scores, self.sides = nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        found = self.backbone(image)[0]
        tokens, grid = found["x_out"], tuple(int(side) for side in found["out_grid_shape"])
        maps = tokens.transpose(1, 2).reshape(image.shape[0], -1, *grid)
        maps = self.tower(F.interpolate(maps, (height // 8, width // 8), mode="bilinear", align_corners=False))
        return torch.cat([self.scores(maps), F.softplus(self.sides(maps))], 1)


def boxes_loss(classes: int = 5) -> Any:
    """Focal loss of the classes and the boxes' 1 - IoU, at the cells whose centre the mask holds (FCOS, 2019)."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        inside = F.adaptive_avg_pool2d(target, output.shape[-2:])
        scores, sides = output[:, :classes].float(), output[:, classes:].float()
        wanted = inside.expand_as(scores)
        entropy = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        focal = ((wanted - scores.sigmoid()) ** 2 * entropy).mean()
        true = 4 * inside.expand_as(sides) + 1
        least, most = torch.minimum(sides, true), torch.maximum(sides, true)
        overlap = (least[:, 0] + least[:, 2]) * (least[:, 1] + least[:, 3])
        union = (most[:, 0] + most[:, 2]) * (most[:, 1] + most[:, 3])
        return focal + (inside[:, 0] * (1 - overlap / union)).mean()

    return loss


def vit(**changes: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    arguments = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 4, "num_heads": 3, "num_classes": 10}
    return VisionTransformer(**{**arguments, **changes})


def resnet(**changes: Any) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, **{"layers": (1, 1, 1, 1), "num_classes": 10, **changes})


def resnet18(channels_last: bool = False) -> nn.Module:
    """ResNet-18 with 1,000 classes, for measurements."""
    model = resnet(layers=(2, 2, 2, 2), num_classes=1000)
    if channels_last:
        model.to(memory_format=torch.channels_last)
        model.register_forward_pre_hook(lambda _, given: (given[0].contiguous(memory_format=torch.channels_last),))
    return model


class _Double(nn.Sequential):
    def __init__(self, given: int, wanted: int) -> None:
        super().__init__(
            nn.Conv2d(given, wanted, 3, padding=1, bias=False),
            nn.BatchNorm2d(wanted),
            nn.ReLU(inplace=True),
            nn.Conv2d(wanted, wanted, 3, padding=1, bias=False),
            nn.BatchNorm2d(wanted),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Two levels, skip connections, transposed convolutions."""

    def __init__(self, channels: int = 3, width: int = 16, channels_last: bool = False) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.down1, self.down2 = _Double(channels, width), _Double(width, 2 * width)
        self.middle = _Double(2 * width, 4 * width)
        self.up2, self.up1 = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2),
        )
        self.merge2, self.merge1 = _Double(4 * width, 2 * width), _Double(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        one = self.down1(image.contiguous(memory_format=self.layout))
        two = self.down2(F.max_pool2d(one, 2))
        three = self.up2(self.middle(F.max_pool2d(two, 2)))
        two = self.up1(self.merge2(torch.cat([two, three], 1)))
        out: torch.Tensor = self.out(self.merge1(torch.cat([one, two], 1)))
        return out


class Lstm(nn.Module):
    """Rows of the image as a sequence, without oneDNN, whose workspace fake tensors do not have."""

    def __init__(self, width: int, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True, dropout=0.1)
        self.head = nn.Linear(hidden, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.backends.mkldnn.flags(enabled=False):
            out: torch.Tensor = self.head(self.lstm(image.flatten(1, 2))[0])
        return out


class LanguageModel(nn.Module):
    """A transformers model on tokens made from pixels; the loss is its own cross-entropy."""

    def __init__(self, kind: str, tokens: int, **changes: Any) -> None:
        super().__init__()
        import transformers

        config, model = {
            "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
            "bert": (transformers.BertConfig, transformers.BertForMaskedLM),
        }[kind]
        self.model, self.tokens = model(config(**changes)), tokens
        self.words = self.model.config.vocab_size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        ids = (image.flatten(1)[:, : self.tokens] * (self.words - 1)).long()
        loss: torch.Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss


class Mlp(nn.Module):
    """Blocks of two linear layers and dropout; with `shared` one block serves at every depth."""

    def __init__(self, width: int = 256, depth: int = 4, shared: bool = False, checkpointed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(3, width)
        blocks = [self._block(width) for _ in range(1 if shared else depth)]
        self.blocks = nn.ModuleList(blocks * depth if shared else blocks)
        self.head = nn.Linear(width, 3)
        self.checkpointed = checkpointed

    @staticmethod
    def _block(width: int) -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
        out: torch.Tensor = self.head(x)
        return out


def frozen(**changes: Any) -> nn.Module:
    """A vision transformer of which only the head learns."""
    model = vit(**changes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    return model


class Pairs(nn.Module):
    """Compares every sample of a batch, and some prototypes, with each other: memory grows with the square."""

    def __init__(self, width: int = 256, prototypes: int = 16) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)
        self.prototypes = nn.Parameter(torch.randn(prototypes, width))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = torch.cat([self.prototypes, self.layer(image.mean((2, 3)))])
        return (found[:, None] - found[None]).pow(2).mean()


class NoExample:
    """A data set that does not say what a sample is like."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        raise AssertionError("a prediction reads no data")


class Words(NoExample):
    """A data set of token ids for a custom task, which says what a sample is like."""

    @staticmethod
    def example(length: int) -> dict[str, object]:
        ids = torch.zeros(length, dtype=torch.int64)
        return {"image": {"input_ids": ids, "attention_mask": ids}, "target": {"labels": ids}}


class Reader(nn.Module):
    """Logits (B, L, 50) of token ids in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.embed(batch["input_ids"]) * batch["attention_mask"][..., None])}


def token_loss() -> object:
    def loss(output: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(output["logits"].flatten(0, 1), target["labels"].flatten())

    return loss


class Sounds(NoExample):
    """A data set of waves for a custom task, as a model of sound takes them."""

    @staticmethod
    def example(length: int) -> dict[str, object]:
        return {"image": {"wave": torch.zeros(length)}, "target": torch.zeros((), dtype=torch.int64)}


class Listener(nn.Module):
    """Logits (B, 10) of waves (B, L) in a mapping."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, width, 9, stride=4), nn.BatchNorm1d(width)
        # No second convolution: oneDNN copies the gradient of its input, which no GPU does.
        self.second, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, 10)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        found = F.gelu(self.norm(self.first(batch["wave"][:, None])))
        logits: torch.Tensor = self.head(F.gelu(self.second(found.transpose(1, 2))).mean(1))
        return logits


def sound_loss() -> Any:
    return nn.functional.cross_entropy


class Tables(NoExample):
    """A data set of rows of a table: numbers, of which some are missing, and kinds."""

    @staticmethod
    def example(numbers: int) -> dict[str, object]:
        row = {
            "numbers": torch.zeros(numbers),
            "missing": torch.zeros(numbers, dtype=torch.bool),
            "kinds": torch.zeros(4, dtype=torch.int64),
        }
        return {"image": row, "target": {"price": torch.zeros(()), "sold": torch.zeros((), dtype=torch.int64)}}


class Row(nn.Module):
    """A price (B,) and logits (B, 2) of rows."""

    def __init__(self, numbers: int, width: int = 512) -> None:
        super().__init__()
        self.unknown, self.kinds = nn.Parameter(torch.zeros(numbers)), nn.Embedding(20, 16)
        self.body = nn.Sequential(nn.Linear(numbers + 64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width))
        self.price, self.sold = nn.Linear(width, 1), nn.Linear(width, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        numbers = torch.where(batch["missing"], self.unknown, batch["numbers"])
        found = F.relu(self.body(torch.cat([numbers, self.kinds(batch["kinds"]).flatten(1)], 1)))
        return {"price": self.price(found)[:, 0], "sold": self.sold(found)}


def row_loss() -> Any:
    def loss(output: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        sold = F.cross_entropy(output["sold"], target["sold"])
        return sold + F.mse_loss(output["price"], target["price"])

    return loss


class Uneven(nn.Module):
    """Four blocks of one list that keep and compute different amounts, without normalisation."""

    def __init__(self, widths: tuple[int, ...] = (8, 48, 16, 96)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 3, 1)) for width in widths
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            image = image + block(image)
        return image
