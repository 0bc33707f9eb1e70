"""Importing this lets torchvision load beside a CPU build of torch; import it before whatever imports torchvision."""

from ratc_runtime.models import rat_patches

rat_patches.define_torchvision_operators()
