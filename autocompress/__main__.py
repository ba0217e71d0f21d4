"""``python -m autocompress`` is the command ``autocompress``."""

from autocompress.cli import main

main()
