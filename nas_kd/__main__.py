"""`python -m nas_kd`: the command line."""

from nas_kd.cli import main

main()
