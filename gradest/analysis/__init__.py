"""Which estimator is right for a case, and what is known about each.

comparison        bias, variance and cost of estimators on one loss, side by side
bias              the measurement of one estimator's bias against the exact gradient
certificates      what was measured of each estimator, kept in a file of its package
recommendation    estimators for a case, ranked, with reasons
catalog           descriptions of every registered plugin
results           the records that comparison and recommendation return
charts            the specifications of all charts
"""
