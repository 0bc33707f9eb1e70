"""What the core does without: compression, ONNX, the range test of the learning rate."""
