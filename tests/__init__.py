"""The checks that are not notebook cells: `python -m tests`, which `make test` runs."""
