"""Compare estimators, and find the right one for a case.

comparison        compares the bias, variance and cost of estimators on one loss
bias              measures one estimator's bias against the exact gradient
certificates      keeps the measured bias and variance of an estimator in a file of its package
recommendation    ranks the estimators that fit a case, with reasons
catalog           describes registered plugins
results           has the records that comparison and recommendation return
markdown          writes tables
pages             writes pages of plugins in Markdown
charts            has the definitions of all charts
"""
