"""A variational autoencoder with binary latents on MNIST, the usual benchmark of estimators: `gradest reproduce binary-vae`.

An encoder gives the logits a of q(h | x), 200 Bernoulli units; a decoder gives p(x | h); the prior is uniform and fixed. Training
maximises the ELBO, E_q[log p(x, h) - log q(h | x)]. The encoder's gradient comes from the estimator, all others from
backpropagation.

settings  the settings of a run
model     the network, its loss as a function of points, and the bounds
variance  the variance of the encoder's gradient
training  `train_vae`: one run, from its settings to its test bound
report    tables and plots of the runs in a folder
run       `reproduce_binary_vae`: every estimator, network and seed, and the report
"""
