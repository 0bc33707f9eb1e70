"""Importing this module lets torchvision load beside a CPU build of torch. Import it before torchvision."""

from ratc_runtime.models import torchvision_operators

torchvision_operators.define()
