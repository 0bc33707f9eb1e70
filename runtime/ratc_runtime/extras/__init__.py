"""Optional features: compression, ONNX, the range test of the learning rate."""
