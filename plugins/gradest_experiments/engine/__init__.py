"""What every experiment stands on; nothing in here knows an experiment.

loop         `fit`, the training loop: steps, measurements, checkpoints, interrupts, exact resumption; and the run of a classifier
seeds        seeds and keys for one purpose each, from the seed of a run
checkpoint   files that are complete whenever the process is killed
folder       a run as a folder: settings, versions, metrics, checkpoint, results
distributed  one run in several processes of torch.distributed
options      the base class of settings
data         digits and MNIST
images       MNIST as bytes, and its binarisation
display      progress bars
tables       Markdown tables
plot         what the charts of all reports have in common
"""
