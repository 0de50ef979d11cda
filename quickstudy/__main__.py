"""`python -m quickstudy` is the `quickstudy` command."""

from quickstudy.cli import main

main()
