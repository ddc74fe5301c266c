"""The table of Bengio, Léonard and Courville 2013 (arXiv 1308.3432), on MNIST: four gaters and three baselines.

rows      the seven rows: what the source states, what it reports, and what a search chose
settings  what a run is made of
training  `train_row`, a run; it resumes exactly
search    a small grid a row, judged by validation images alone
report    the table, beside the published figures, and validation curves
run       `reproduce_bengio2013`, all of it
"""
