"""Networks that are only looked through: their weights are given and never trained."""
