"""`python -m bandpo` is `bandpo`."""

from bandpo.cli import main

main()
