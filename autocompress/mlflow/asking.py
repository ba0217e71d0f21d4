"""Which store a run is shown in: its author's word alone sends nothing anywhere."""

from __future__ import annotations

from shlex import quote

from autocompress.errors import InputError
from autocompress.policy.writing import printable, without_password
from autocompress.track.folder import RunFolder


def track_command(folder: RunFolder, uri: str | None = None) -> str:
    """What to type to bring a store up to date with a run, ready to be copied into a shell.

    Args:
        folder: of the run.
        uri: of the store; ``None`` is the one beside the run.
    """
    command = f"autocompress track {quote(printable(str(folder.root)))}"
    if uri is None:
        return f"`{command}`"
    shown = without_password(uri)
    password = "" if shown == uri else " (with the password)"
    return f"`{command} --uri {quote(printable(shown))}`{password}"


def check_named(folder: RunFolder, named: str | None, beside: str) -> None:
    """Refuse to take up a store only because a run, which may be a stranger's, names it.

    Args:
        folder: of the run.
        named: by its study.
        beside: the store that lies beside the run.

    Raises:
        InputError: it names another store.
    """
    if named and named != beside:
        raise InputError(
            f"The run names the MLflow store {printable(without_password(named))}, which is used "
            f"on your word only: say {track_command(folder, named)}, or `--uri {quote(beside)}` "
            "for the store beside the run."
        )
