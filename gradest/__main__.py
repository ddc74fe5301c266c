"""`python -m gradest` is the command `gradest`."""

from gradest.cli import main

main()
