"""From an nn.Module to an fp32 ONNX graph whose promised axes are dynamic, and words for everything that prevents it."""
