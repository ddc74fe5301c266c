"""How a gradient is computed, on top of the contract of plugins.

ask_tell           ask an estimator for points, tell it the losses: the two halves of every gradient, checked
arguments          the checks of pre-activations and counts
losses             f at the points of a draw, and checks of f
expectation        sample and expect: one draw, wired into autograd
estimate           the mean and variance of many draws
exact              the expectation and its gradient as a sum over all outcomes
credit             the score-function family for those who sample themselves
events             how many trailing dims of the pre-activations are one event
second_derivative  which gradients may be differentiated again
results            the record that `estimate` returns
executors          where the blocks of many draws are computed
distributed        the rows and the state of a batch that several processes share
outside            calls that compiled code makes outside its graph
"""
