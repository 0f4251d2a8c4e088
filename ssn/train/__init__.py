"""Training: makes a checkpoint. Needs the `train` extra (torch, timm, FrEIA)."""
