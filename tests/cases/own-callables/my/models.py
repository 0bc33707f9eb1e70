from torch import nn

from my.blocks import Block


class UNet(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in layers))

    def forward(self, image):
        return self.blocks(image)[:, :1]
