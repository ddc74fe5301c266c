"""Units of several classes or items: one-hot and relaxed ones, subsets, and maps with most entries 0."""
