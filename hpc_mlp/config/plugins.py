"""Python files of the user's own that register models (`plugins = [...]` in a variant), and whom
they are trusted by.

A file is read once: what is run is what was hashed. Its sha256 is part of a run's identity; a copy
lies in the submission and in the run folder, so that a job that starts again, `predict`, `evaluate`
and `export` use the code that was trained. Covered is the file itself, not what it imports or
opens."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hpc_mlp.errors import UserError, printable
from hpc_mlp.files.checked import JsonRecord, damaged, read_bytes

# In a run folder, and in a submission's.
FOLDER = "plugins"


@dataclass(frozen=True)
class Plugin:
    """`path`: where the file was when it was read; a copy keeps it."""

    path: Path
    source: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    def record(self) -> dict[str, Any]:
        """For config.json and plan.json; the file lies as `file` in `plugins` beside them."""
        stem = re.sub(r"[^A-Za-z0-9_]", "_", self.path.stem)[:100]
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "file": f"{stem}-{self.sha256[:12]}.py",
        }


class PluginRecord(JsonRecord):
    """See `Plugin.record`."""

    path: str
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    file: Annotated[str, Field(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]*\z")]

    @property
    def name(self) -> str:
        return Path(self.path).name


def read_plugin(path: Path) -> Plugin:
    """UserError where there is no such file."""
    data = read_bytes(path, "Name a Python file.")
    if data is None:
        raise UserError(
            f"plugin {printable(path)} does not exist; paths in `plugins` are relative to the "
            "variant's file."
        )
    return Plugin(path, data)


def stored_plugin(folder: Path, record: PluginRecord) -> Plugin:
    """The copy in the run folder or submission `folder`; DamagedError if gone or changed."""
    path = folder / FOLDER / record.file
    remedy = "Train the run again."
    data = read_bytes(path, remedy)
    if data is None:
        raise damaged(path, "it is gone", remedy)
    plugin = Plugin(Path(record.path), data)
    if plugin.sha256 != record.sha256:
        raise damaged(path, f"sha256 {plugin.sha256[:12]}… and not {record.sha256[:12]}…", remedy)
    return plugin


# ---- trust


def trust(plugins: Iterable[Plugin]) -> None:
    """Remember that this user has trained with these files, where anything can be remembered."""
    with suppress(OSError, RuntimeError):
        folder = _trusted()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for plugin in plugins:
            with suppress(FileExistsError):
                descriptor = os.open(
                    folder / plugin.sha256, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
                )
                with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                    file.write(f"{printable(plugin.path)}\n")


def is_trusted(plugin: Plugin) -> bool:
    """Whether this user has trained with a file of the same bytes."""
    with suppress(OSError, RuntimeError):
        return (_trusted() / plugin.sha256).stat().st_uid == os.geteuid()
    return False


def require_trust(plugins: Iterable[Plugin], run: Path) -> None:
    """UserError for files that this user has not trained with."""
    for plugin in plugins:
        if not is_trusted(plugin):
            raise UserError(
                f"the model of {printable(run)} is Python code in {printable(plugin.path.name)} "
                f"(sha256 {plugin.sha256[:12]}…), with which you have not trained. A copy lies in "
                f"{printable(run / FOLDER)}: read it, then allow it with --trust-plugins (in "
                "Python trust_plugins=True)."
            )


def _trusted() -> Path:
    """One file a digest: made at once or not at all, whoever else makes others."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification has paths that are not absolute ignored.
    home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"
    return home / "hpc-mlp" / "trusted-plugins"
