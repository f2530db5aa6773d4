"""`python -m identity` is the command line."""

from identity.cli import main

main()
