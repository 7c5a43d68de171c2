"""`python -m metamobile_cli`."""

from metamobile_cli import main

if __name__ == "__main__":  # readers of pictures import this file again
    main()
