"""Binary segmentation: a map of logits for every image."""
