"""The small problems on which papers compare estimators: `gradest reproduce toys`.

Each part is a file: it measures something, task by task, and draws it. Its fields are its settings, such as sizes and seed.

part         what all parts have in common, and how a gradient is measured
quadratic    the variance of every estimator on the quadratic of 200 units
learning     variance against steps, for the estimators that learn
probability  variance against P(b = 1), for the estimators whose variance depends on it differently
polynomial   straight-through estimators on polynomial losses: bias, and training curves
run          `reproduce_toys`: runs parts into a folder, and writes the report
"""
