"""The network under test: wrapped for the export, run by PyTorch as the reference, checked before it is traced, and the sizes to run it at."""
