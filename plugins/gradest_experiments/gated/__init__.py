"""Conditional computation by Bengio, Léonard and Courville (2013, arXiv 1308.3432, section 5): `gradest train`.

A small network, the gater, decides for each image which tenth of the linear experts of a larger one is computed. The gates are
stochastic units, trained through any neuron and any estimator that fits it.

settings  what a run is made of, and the defaults that follow from what a neuron and an estimator can do
network   the gated network
sparsity  the two penalties that keep a tenth of the gates open, and the max-norm constraint
training  `train`: one run, from its settings to its test error
display   the progress bar of a run
gaters    the four gaters of Bengio et al. (2013) and their baselines, as a table
"""
