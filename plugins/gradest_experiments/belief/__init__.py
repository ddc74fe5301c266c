"""A sigmoid belief network on MNIST, the usual benchmark of several stochastic layers: `gradest train belief`.

Two layers of 200 Bernoulli units, as in Mnih and Gregor (2014), arXiv 1402.0030, and Mnih and Rezende (2016), arXiv 1602.06725. A
`gradest.nn.StochasticGraph` trains them with K whole-path samples an image: it credits each layer with the costs that follow it
or, for a bound of K samples, with all of them.

settings  the settings of a run
network   the network, the costs of a path, and the bound
training  `train_belief`: one run, from its settings to its validation bound
run       `run_belief`: the same with a progress bar, and the table of its epochs
"""
