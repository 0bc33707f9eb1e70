"""A comparison in the forms that `ratc diff` prints, one file each."""
