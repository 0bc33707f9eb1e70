"""Importing this module lets torchvision load beside a CPU build of torch. Import it before torchvision."""

from ratc_runtime.models import rat_patches

rat_patches.define_torchvision_operators()
