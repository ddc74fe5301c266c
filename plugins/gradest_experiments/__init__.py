"""Experiments: the networks and toy problems on which papers compare estimators, and one training engine under them.

engine      what every experiment stands on: the training loop, checkpoints, run folders, data, plots
gated       conditional computation by Bengio et al. (2013): `gradest train`
bengio2013  the table of that paper on MNIST: `gradest reproduce bengio2013`
blocks      conditional computation at block level: `gradest reproduce block-gated`
vae         the binary variational autoencoder: `gradest reproduce binary-vae`
belief      the sigmoid belief network of several layers: `gradest train belief`
toys        small problems: `gradest reproduce toys`
benchmark   any estimators on a fixed set of problems: `gradest benchmark`, `gradest leaderboard`
report      runs as an HTML page: `gradest report`
demo        a tour through the library and the service: `gradest demo`
"""
