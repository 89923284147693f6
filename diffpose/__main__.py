"""`python -m diffpose`: the command."""

from diffpose.cli import main

main()
