"""The table of Bengio, Léonard and Courville (2013, arXiv 1308.3432), on MNIST: `gradest reproduce bengio2013`.

rows      the seven rows: the settings and errors that the paper gives, and the settings that a search chose
settings  the settings of a run
noise     the Beta noise before the gates of stochastic times smooth
training  `train_row`: one run, from its settings to its test error
search    a small grid of settings for each row, judged by the validation images alone
report    the table beside the published errors, and validation curves
run       `reproduce_bengio2013`: the search, every row and seed, and the report
"""
