"""``python -m autocompress`` is the command ``autocompress``."""

from autocompress.cli import main

if __name__ == "__main__":
    main()
