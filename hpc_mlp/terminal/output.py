"""The one way of plain text to a terminal, a pipe or a log: whatever names are in it, nothing of it
acts there, and nothing stops the work because the output cannot encode it."""

from __future__ import annotations

import codecs
import io
import sys

import click

from hpc_mlp.errors import printable

# Where the output has no Unicode. One character for one, so that tables stay tables.
ASCII = str.maketrans("▁▂▃▄▅▆▇█━╸╺│─×·…–−→≥≤±★’", "__..--==" + "=--|-x|~-->><~*'")
_ASCII = "hpc_mlp_ascii"


def say(text: object, err: bool = False, end: bool = True) -> None:
    """A line, or several, to standard output (or error); `end`: with a line break at its end."""
    click.echo(printable(text, keep="\n"), err=err, nl=end)


def prepare() -> None:
    """What this process's standard streams cannot encode is written in ASCII, as it goes."""
    codecs.register_error("hpc-mlp", _in_ascii)
    codecs.register(_renamed_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if ascii_only else None, errors="hpc-mlp")


def _renamed_ascii(name: str) -> codecs.CodecInfo | None:
    """click takes a stream for misconfigured where its encoding is called ascii, and writes UTF-8
    to it. Under another name it believes that ASCII is meant."""
    if name != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode,
        found.decode,
        found.streamreader,
        found.streamwriter,
        found.incrementalencoder,
        found.incrementaldecoder,
        name=_ASCII,
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = printable(error.object[error.start : error.end]).translate(ASCII)
    return "".join(c if c.isascii() else "?" for c in text), error.end
