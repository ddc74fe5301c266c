"""A router that sends each MNIST image to few experts, by `gradest reproduce experts`.

settings.py     the settings of a run, and the list of runs
network.py      the network, routed and dense
training.py     one run, from its settings to its test error
report.py       tables and plots of the runs in a folder
run.py          all runs, and their report
"""
