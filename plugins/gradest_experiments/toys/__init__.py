"""The small problems by which papers compare estimators: `gradest reproduce toys`.

Each part is a file: it measures something, task by task, and draws it. What it is made of (sizes, seed) are its fields.

    quadratic    variance of every estimator on the quadratic of 200 units
    learning     variance against steps, of the estimators that learn
    probability  variance against P(b = 1), of the estimators that differ there
    polynomial   straight-through estimators on polynomial losses: bias, and training curves
    part         what parts have in common, and how a gradient is measured
    plot         what charts have in common
    run          `reproduce_toys`: runs parts into a folder, and writes the report
"""
