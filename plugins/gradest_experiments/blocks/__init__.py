"""Conditional computation at block level: `gradest reproduce block-gated`.

Bengio, Bacon, Pineau and Precup 2015 (arXiv 1511.06297) cut a hidden layer into blocks, and let a policy open few of them for
each image: for MNIST 16 blocks of 16 units, of which one is to be open. What is closed is not computed. The policy is a linear
layer of Bernoulli units, which any estimator may train.

    regularisers   what drives the policy to open few blocks, and different ones for different images
    settings       what a run is made of
    network        the gated network, and the dense one
    training       `train_blocks`, a run; it resumes exactly
    speed          how fast a trained network is beside dense ones
    report         table and plots of the runs in a folder
    run            `reproduce_block_gated`: every network and seed
"""
