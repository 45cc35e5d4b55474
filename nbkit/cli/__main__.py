"""`python -m nbkit.cli`, where the `nbkit` script is not on PATH."""

from nbkit.cli import main

main()
