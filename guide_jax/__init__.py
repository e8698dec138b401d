"""Make a face generator forget one person (GUIDE, arXiv 2405.09879), in JAX and Flax.

Shapes are written with one legend everywhere, as line-end comments like `# [N, L, D]`:

    N  batch
    H, W, C  image height, width and channels; images are float32 RGB in [-1, 1], NHWC
    L  num_ws, the number of style vectors that the synthesis network takes
    D  w_dim, the length of one of them
    Z  z_dim, the length of a latent before the mapping network
    E  length of an identity embedding
"""
