"""The source's experiment: a layer of gated experts, trained through any neuron and any estimator that fits it.

Bengio, Léonard and Courville 2013 (arXiv 1308.3432, section 5) let a small network, the gater, decide for each image which
tenth of the linear experts of a larger one is computed. The gates are the stochastic units that are compared.

    data        digits (8x8, comes with scikit-learn) and MNIST from its IDX files
    sparsity    the two penalties that keep a tenth of the gates open, and the max-norm constraint
    gated       the network
    settings    what a run is made of, and the defaults that follow from a pair's capabilities
    checkpoint  files that survive an interrupt at any moment
    folder      a run as a folder: settings, versions, metrics, checkpoint
    training    `train`, a run; it resumes exactly
    gaters      the source's four gaters and its baseline, as a table
    report      runs as an HTML page
    toys        beside the source: the small problems by which papers compare estimators
"""
