"""Make the README's pictures and the output that it shows, from a real run on scikit-learn's
digits.

    python tools/pictures.py
        README's console blocks, docs/images/live.svg, report.png
    python tools/pictures.py --check [FOLDER]
        run the commands in FOLDER; exit code 1 where one fails, or where the README shows other
        lines than they print

The commands run on an emulated terminal, so that nothing here depends on how the package is built.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
README, IMAGES = ROOT / "README.md", ROOT / "docs" / "images"
COLUMNS, LINES = 100, 24
ARCHIVE = "demo/digits.zip"
# In the README's console blocks: a command behind "$ ", then what it printed.
SHOWN = re.compile(r"^\$ (.*)\n((?:(?!\$ |```).*\n)*)", re.M)
# rich's own frame, without the font that it would fetch from the net.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def on_terminal(command: str, folder: Path) -> tuple[str, list[Text], int]:
    """Run a command on a terminal of COLUMNS. What stays there, the screens on the way, the exit
    code."""
    # High enough for all that a command prints; the live table is told that it has LINES.
    screen = pyte.Screen(COLUMNS, 200)
    stream = pyte.ByteStream(screen)
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(folder)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", PYTHONPATH=str(ROOT))
        os.environ["PATH"] = f"{folder / '.bin'}:{os.environ['PATH']}"
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            os.environ.pop(name, None)
        os.execvp("sh", ["sh", "-c", command])
    screens = []
    while True:
        # A whole frame is there when nothing more comes: one frame takes several reads.
        if not select.select([descriptor], [], [], 0.1)[0]:
            screens.append(coloured(screen))
        try:
            stream.feed(os.read(descriptor, 1 << 16))
        except OSError:
            # The terminal's other end was closed: the command has ended.
            break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = [line.rstrip() for line in screen.display]
    return "\n".join(lines).rstrip() + "\n", screens, code


def coloured(screen: pyte.Screen) -> Text:
    text = Text()
    for row in range(LINES):
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            style = Style(color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold)
            text.append(cell.data, style)
        text.append("\n")
    return text


def colour(name: str) -> str | None:
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return (
        None if name == "default" else name.replace("brown", "yellow").replace("bright", "bright_")
    )


def prepare(folder: Path) -> None:
    """The archive of `hpc-mlp demo`, and the command `hpc-mlp` that is this tree's."""
    (folder / ".bin").mkdir(exist_ok=True)
    program = folder / ".bin" / "hpc-mlp"
    program.write_text(f"#!{sys.executable}\nfrom hpc_mlp.cli import main\n\nmain()\n")
    program.chmod(0o755)
    if not (folder / ARCHIVE).exists():
        sys.path.insert(0, str(ROOT))
        from hpc_mlp.conversion.digits import write_digits_zip

        write_digits_zip(folder / ARCHIVE)


def words(output: str) -> set[str]:
    """Of the tables and short answers, without numbers, times, and the sentences that depend on
    them."""
    tables = re.split(r"^Best: ", output, flags=re.M)[0].replace("★", "")
    return set(re.sub(r"[−+±]?\d[\d.,]*|[─━┏┓┃│]+", " ", tables).split())


def check(folder: Path) -> int:
    prepare(folder)
    for command, shown in SHOWN.findall(README.read_text()):
        output, _, code = on_terminal(command, folder)
        if code or words(output) != words(shown):
            print(
                f"$ {command}\n{output}\nexit code {code}. The README shows:\n{shown}",
                file=sys.stderr,
            )
            print("If it is right now: python tools/pictures.py", file=sys.stderr)
            return 1
    return 0


def draw_live(command: str, screens: list[Text]) -> None:
    """A screen of the training on which some runs are done, or one of its second half, as SVG."""
    busy = [text for text in screens if " left" in text.plain and "running" in text.plain]
    some = [text for text in busy if " done" in text.plain]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}", "bold"))
    shown = some[0] if some else busy[2 * len(busy) // 3]
    shown.rstrip()
    console.print(shown)
    svg = console.export_svg(title="hpc-mlp", theme=SVG_EXPORT_THEME, code_format=SVG)
    (IMAGES / "live.svg").write_text(svg)


def draw_report(page: Path, folder: Path) -> None:
    """Summary and curves of the page beside each other, as headless Chromium shows them."""
    width, height, gap = 1130, 1130, 24
    both = Image.new("RGB", (2 * width + 3 * gap, height + 2 * gap), "#d0d7de")
    # The second picture begins where the first ends: headless Chromium does not scroll.
    for number, style in enumerate(("", "header, nav, #summary { display: none }")):
        shot, part = folder / "page.png", folder / "part.html"
        part.write_text(page.read_text().replace("</head>", f"<style>{style}</style></head>"))
        command = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars"]
        command += [f"--window-size={width},{height}", f"--screenshot={shot}", part.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        both.paste(Image.open(shot).convert("RGB"), (gap + number * (width + gap), gap))
    both = both.resize((1600, round(1600 * both.height / both.width)), Image.Resampling.LANCZOS)
    # The coverage method keeps the colours of thin lines; the others give them up for shades of
    # grey.
    both.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        IMAGES / "report.png", optimize=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("folder", nargs="?", type=Path, help="with --check")
    options = parser.parse_args()
    if options.folder and not options.check:
        parser.error("FOLDER goes with --check")
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if options.check:
            return check(folder)
        prepare(folder)
        IMAGES.mkdir(exist_ok=True)
        shown = {}
        for command, _ in SHOWN.findall(README.read_text()):
            shown[command], screens, code = on_terminal(command, folder)
            assert code == 0, shown[command]
            if command.startswith("hpc-mlp train"):
                draw_live(command, screens)
        fresh = SHOWN.sub(lambda found: f"$ {found[1]}\n{shown[found[1]]}", README.read_text())
        README.write_text(fresh)
        draw_report(folder / "runs" / "report.html", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
