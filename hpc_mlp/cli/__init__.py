"""The command `hpc-mlp`: one click command per verb, loaded only when it is called for."""

from __future__ import annotations

import importlib
from typing import Any

import click

from hpc_mlp._version import __version__
from hpc_mlp.errors import nearest
from hpc_mlp.terminal import output

# verb → (module, one line of help). The line stands here so that `--help` imports no command.
COMMANDS = {
    "convert": ("hpc_mlp.cli.data", "Convert a ZIP of class-labelled images into shards."),
    "inspect": ("hpc_mlp.cli.data", "Show what a shards folder holds."),
    "train": ("hpc_mlp.cli.train", "Train variants × seeds here and now, all at once."),
    "submit": (
        "hpc_mlp.cli.launch",
        "Train variants × seeds in jobs: on Slurm, or queued on this machine.",
    ),
    "status": (
        "hpc_mlp.cli.status",
        "Show every run's state: queued, running, done, failed, lost.",
    ),
    "cancel": ("hpc_mlp.cli.launch", "End the jobs of a runs folder."),
    "table": ("hpc_mlp.cli.report", "Show the runs of a folder as one table."),
    "report": ("hpc_mlp.cli.report", "Write one HTML page with plots of all runs."),
    "doubtful": ("hpc_mlp.cli.doubtful", "Name the images whose label is most doubtful."),
    "compare": ("hpc_mlp.cli.compare", "Show how two runs, or two folders of runs, differ."),
    "track": ("hpc_mlp.cli.track", "Write runs to TensorBoard or MLflow, after the fact."),
    "clean": ("hpc_mlp.cli.clean", "Remove checkpoints of complete runs, failed runs, caches."),
    "predict": ("hpc_mlp.cli.predict", "Predict the classes of images with a trained run."),
    "evaluate": (
        "hpc_mlp.cli.predict",
        "Measure a trained run on another dataset with the same classes.",
    ),
    "export": (
        "hpc_mlp.cli.predict",
        "Write a trained model as ONNX, pt2 or safetensors, with a model card.",
    ),
    "doctor": ("hpc_mlp.cli.doctor", "Check this machine and cluster; say what to do."),
    "demo": ("hpc_mlp.cli.demo", "Digits → ZIP → shards → four variants → table, in a minute."),
}


class LazyGroup(click.Group):
    def main(self, *arguments: Any, **options: Any) -> Any:
        output.prepare()
        return super().main(*arguments, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Resilient: for the shell's completion, which stays silent.
        known = not args or args[0] in COMMANDS or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:
            near = nearest(args[0], list(COMMANDS))
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpc-mlp")
def main() -> None:
    """From a ZIP of class-labelled images to a fair, finished comparison of classifiers.

    \b
    hpc-mlp convert photos.zip shards
    hpc-mlp train shards --variants all --seeds 0-2
    hpc-mlp table runs
    """
