"""A rectified flow over the latent, which is not quantized: most people's first choice.

The autoencoder is that of the method, trained without its quantizer, and the network a transformer
of the same blocks (as Peebles and Xie, 2023, https://arxiv.org/abs/2212.09748). There is one stage,
whose canvas is the latent, and a sequence's `tokens` are the latent, [B, L, C].
"""
