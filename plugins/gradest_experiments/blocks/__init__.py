"""Conditional computation at block level: `gradest reproduce block-gated`.

Bengio, Bacon, Pineau and Precup (2015, arXiv 1511.06297) divide a hidden layer into blocks, and let a policy open few of them
for each image: for MNIST there are 16 blocks of 16 units, of which one is to be open. Closed blocks are not computed. The
policy is a linear layer of Bernoulli units, which any estimator may train.

regularisers  the penalties that make the policy open few blocks, and different ones for different images
settings      the settings of a run
network       the network whose hidden layer is gated, and the dense one
training      `train_blocks`: one run, from its settings to its test error
speed         the speed of trained networks beside dense ones
report        tables and plots of the runs in a folder
run           `reproduce_block_gated`: every network and seed, their speed, and the report
"""
