"""How plugins are found, checked and looked up.

    entry_points    which distributions bring plugins, and what an argument of the command line names
    validation      what a plugin class must have before it is registered
    faults          what a plugin's code raises, with file and line
    loading         one distribution: imported, its hooks called, its classes checked, accepted whole or not at all
    registry        the table of all plugins, and the lookup of a neuron, an estimator or an objective by name

pluggy is used here and in `gradest.contract.hookspecs` only.
"""
