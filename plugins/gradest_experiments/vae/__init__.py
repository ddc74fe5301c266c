"""The field's benchmark, a variational autoencoder with binary latents on MNIST: `gradest reproduce binary-vae`.

An encoder gives the logits a of q(h | x), 200 Bernoulli units; a decoder gives p(x | h); the prior is uniform and fixed. What is
maximised is the ELBO, E_q[log p(x, h) - log q(h | x)]. The gradient in the encoder goes through the estimator; all else is
backpropagation.

    images     MNIST as bytes, and how it is made binary
    settings   what a run is made of
    model      the network, the loss as an f of points, and the bounds
    variance   how much the encoder's gradient varies
    training   `train_vae`, a run; it resumes exactly
    report     tables and plots of the runs in a folder
    run        `reproduce_binary_vae`: every estimator, network and seed
"""
