"""`python -m flows`: the same as `ctclip`."""

from flows.cli import main

main()
