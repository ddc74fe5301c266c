"""What a plugin is written against: the classes to subclass, the hooks to implement, and arithmetic that is safe by rows.

A plugin imports this package, `gradest.random` and `gradest.errors`, and nothing else of gradest. `gradest.contract.hookspecs`
is the guide for authors.

    neuron       Neuron and its capabilities (Binary, Discrete, Relaxable, Reparameterised, ...)
    estimator    Estimator, MonteCarlo, Draw, Feedback, Bias, Cost
    target       Target: what is estimated if not E[L]; MaxOfSamples, Risk, ConditionalValueAtRisk
    score_function   ScoreFunction: weights of the scores that follow from the losses of K samples
    objective    Objective, Separable
    plugin       the base of all three: options as frozen pydantic fields
    modules      options that are torch modules, such as a control variate of the user's own
    law          every joint outcome of an event, with its probability
    numerics     functions whose result for a row does not depend on the batch, and the kernels
    hookspecs    the three hooks, and the version of this contract

The names that most plugins need are also in `gradest` itself, such as `gradest.Neuron`.
"""
