"""The benchmark: any estimators on a fixed set of problems, and their place beside the kept results. `gradest benchmark`.

problem     what all problems have in common
training    what those have in common in which units are trained
polynomial  training of binary units on polynomial losses
subsets     the error of gradients in the logits of a subset
select      learning to select the features that matter
variance    the error of gradients against P(h = 1), the number of units and the curvature of the loss
networks    the autoencoders, the sigmoid belief network and the router, which are experiments of their own
problems    the list of all problems
run         `run_benchmark`: runs into a folder, joined with the kept results
report      tables and charts
"""
