"""TensorBoard: event files in the run folders, in `tensorboard/`, where `train.trackers` has them
too."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from hpc_mlp.tracking.records import Point, TrackedRun, Written

# As torch's and Accelerate's writers do, `train.trackers` writes float32.
_CLOSE = 1e-6
Scalars = dict[tuple[str, int], float]


def open_tracker(place: str | None, experiment: str) -> EventFiles:
    return EventFiles(Path(place) if place else None)


class EventFiles:
    """`place`: a folder for all runs, instead of each run's own."""

    def __init__(self, place: Path | None) -> None:
        self._place = place

    def write(self, run: TrackedRun) -> Written:
        own = run.run.config.value("train.trackers") or ()
        if self._place is None and run.state == "running" and "tensorboard" in own:
            # It writes there itself.
            return "up to date"
        folder = run.run.path / "tensorboard"
        if self._place is not None:
            # Several RUNS may have runs of one name.
            folder = self._place / f"{run.name}-{run.key[:8]}"
        points = [*run.points, *([run.test] if run.test else [])]
        wanted = {(tag, p.epoch): value for p in points for tag, value in p.values.items()}
        there = _read(folder) if folder.is_dir() else {}
        tags = {tag for tag, _ in wanted}
        there = {key: value for key, value in there.items() if key[0] in tags}
        anew = any(
            key not in wanted or abs(value - wanted[key]) > _CLOSE * max(1e-3, abs(wanted[key]))
            for key, value in there.items()
        )
        if anew:
            # It was trained anew: event files can only grow.
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
            there = {}
        missing = wanted.keys() - there.keys()
        if not missing:
            return "up to date"
        _append(folder, points, missing)
        return "written anew" if anew else "continued" if there else "new"


def _read(folder: Path) -> Scalars:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {(tag, event.step): event.value for tag in tags for event in events.Scalars(tag)}


def _append(folder: Path, points: list[Point], missing: set[tuple[str, int]]) -> None:
    writer = EventFileWriter(str(folder))
    for point in points:
        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in point.values.items()
            if (tag, point.epoch) in missing
        ]
        if values:
            summary = Summary(value=values)
            writer.add_event(Event(wall_time=point.time, step=point.epoch, summary=summary))
    writer.close()
