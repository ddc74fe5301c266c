"""Costs, and the stochastic layers that are told them: broadcast_loss for one cost, StochasticGraph for several."""
