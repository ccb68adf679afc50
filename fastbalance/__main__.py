"""`python -m fastbalance`: the command line."""

from fastbalance.cli import main

if __name__ == "__main__":
    main()
