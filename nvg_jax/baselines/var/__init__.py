"""VAR (Tian et al., 2024, https://arxiv.org/abs/2404.02905): scale after scale.

Where the paper's method has stages of ever finer clusters, VAR has grids of ever more tokens. A
`stage` is a scale here, and `heap` the tokens of all of them, each grid in raster order.
"""
