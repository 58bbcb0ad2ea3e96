"""`python -m flows` is `ctclip`."""

from flows.cli import main

main()
