"""Other methods, to compare the paper's with: same data, autoencoder, blocks, training and jobs.

What each is made of stands in `jobs.method`.
"""
