"""Files of the original: checkpoints and binarised text (.pth)."""
