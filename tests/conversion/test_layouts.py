"""Data sets as people have them, as real archives through the command line: what is taken as
class and split, what is left out, and what a refusal says."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.archives import convert, encoded, make_tar, make_zip, picture, pixels, refused, rejects
from support.mutations import mutated_bytes

import hpc_mlp
from hpc_mlp.data.manifest import Manifest

Files = Mapping[str, bytes]
PICTURES = [encoded(picture(i, (6, 5))) for i in range(24)]
# Twelve images of two classes.
NAMES = [f"{i:02d}.png" for i in range(12)]
CLASSES = ["cat", "dog"] * 6
SPLITS = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
BOTH, GIVEN = {"cat": 6, "dog": 6}, {"train": 8, "val": 2, "test": 2}


def images(*names: str, first: int = 0) -> dict[str, bytes]:
    return {name: PICTURES[first + i] for i, name in enumerate(names)}


def shaped(form: str) -> dict[str, bytes]:
    """`{c}` class, `{s}` split, `{n}` file name."""
    rows = zip(CLASSES, SPLITS, NAMES, strict=True)
    return images(*(form.format(c=c, s=s, n=n) for c, s, n in rows))


def lines(*columns: Sequence[str], head: str = "", sign: str = ",") -> bytes:
    rows = [head] * bool(head) + [sign.join(row) for row in zip(*columns, strict=True)]
    return ("\n".join(rows) + "\n").encode()


def objects(*columns: Sequence[object], keys: str) -> bytes:
    rows = zip(*columns, strict=True)
    return "".join(
        json.dumps(dict(zip(keys.split(), row, strict=True))) + "\n" for row in rows
    ).encode()


def of_split(split: str, *columns: Sequence[str], head: str, sign: str = ",") -> bytes:
    here = [i for i, s in enumerate(SPLITS) if s == split]
    return lines(*([column[i] for i in here] for column in columns), head=head, sign=sign)


FLAT = shaped("img/{n}")
PATHS = [f"{c}/{n}" for c, n in zip(CLASSES, NAMES, strict=True)]
PATHS_BY_SPLIT = [f"{s}/{n}" for s, n in zip(SPLITS, NAMES, strict=True)]
STEMS = [name.removesuffix(".png") for name in NAMES]
NUMBERS = [str(int(name == "dog")) for name in CLASSES]


@dataclass
class Case:
    """`files`, or several archives of them, or what makes one in a folder, converted with
    `options`. `classes`: images of each. `splits`: None where they are drawn. `said`: in what is
    printed. `lost`: number of rejects."""

    files: Files | list[Files] | Callable[[Path], Path]
    classes: dict[str, int] = field(default_factory=lambda: dict(BOTH))
    splits: dict[str, int] | None = None
    said: tuple[str, ...] = ()
    lost: int = 0
    options: tuple[str, ...] = ()
    kind: str = "zip"


def samples(split: str, kind: str, labels: Sequence[object] = CLASSES) -> dict[str, bytes]:
    """Of a WebDataset: each image, and beside it a .cls or .json."""
    files: dict[str, bytes] = {}
    for i, s in enumerate(SPLITS):
        if split in ("", s):
            text = json.dumps(labels[i]) if kind == "json" else str(labels[i])
            files |= {f"{i:04d}.png": PICTURES[i], f"{i:04d}.{kind}": text.encode()}
    return files


def shards(folder: Path, kind: str, labels: Sequence[object], **more: bytes) -> Path:
    """A folder of tars, one or two for each split, and of other files."""
    root = folder / "wds"
    root.mkdir()
    for split in GIVEN:
        content = list(samples(split, kind, labels).items())
        for number, begin in enumerate(range(0, len(content), 8)):
            make_tar(root / f"{split}-{number:06d}.tar", dict(content[begin : begin + 8]))
    for name, data in more.items():
        (root / name.replace("__", ".")).write_bytes(data)
    return root


def our_shards(folder: Path) -> Path:
    """What a conversion has written."""
    archive = make_zip(folder / "0.zip", shaped("{s}/{c}/{n}"))
    assert convert(archive, folder / "shards", "--size", 4).exit_code == 0
    return folder / "shards"


def arrays(folder: Path, **arrays: Any) -> Path:
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


def random(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def parquet(folder: Path, names: bool = True, **columns: Sequence[object]) -> Path:
    """A folder of one file for each split; `names`: those of the classes, as hubs write them."""
    arrow = pytest.importorskip("pyarrow", reason="pip install 'hpc-mlp[parquet]'")
    importlib.import_module("pyarrow.parquet")
    root = folder / "hub" / "data"
    root.mkdir(parents=True)
    for split in GIVEN:
        here = [i for i, s in enumerate(SPLITS) if s == split]
        table = arrow.table({k: [v[i] for i in here] for k, v in columns.items()})
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        if names:
            text = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": text})
        arrow.parquet.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=3)
    return root.parent


def zipped(root: Path) -> Path:
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}
    return make_zip(root / "a.zip", files)


CASES = {
    "class folders": Case(shaped("{c}/{n}"), said=("class folders: 12 images of 2 classes\n",)),
    "class folders in folders": Case(shaped("my data/v2/{c}/{n}")),
    "class folders with README and __MACOSX": Case(
        shaped("set/{c}/{n}") | {"README.md": b"x", "__MACOSX/set/cat/._1.png": b"x"},
        said=("2 other files ignored",),
    ),
    "folders inside class folders": Case(shaped("{c}/img/{n}"), said=("count as the class",)),
    "split folders": Case(shaped("{s}/{c}/{n}"), splits=GIVEN, said=("split folders",)),
    "train and eval": Case(
        {n.replace("test/", "Eval/"): d for n, d in shaped("{s}/{c}/{n}").items()}, splits=GIVEN
    ),
    "splits inside class folders": Case(shaped("{c}/{s}/{n}"), splits=GIVEN),
    "split folders with a word in common": Case(
        shaped("seg_{s}/seg_{s}/{c}/{n}") | images("seg_pred/1.png", first=12),
        splits=GIVEN,
        said=("took the folder seg_train as train\n", "took the folder seg_val as val\n"),
        lost=1,
    ),
    "training_set and test_set": Case(
        {name.replace("val_", "test_"): data for name, data in shaped("{s}_set/{c}/{n}").items()},
        splits={"train": 6, "val": 2, "test": 4},
        said=("took the folder test_set as test\n", "val drawn from train"),
    ),
    "split folders further down": Case(
        shaped("set/set/{s}/{c}/{n}") | images("test/1.png", first=12),
        splits=GIVEN,
        said=("took the split folders in set/set\n",),
        lost=1,
    ),
    "class folders, and all of them again": Case(
        shaped("x/{c}/{n}") | shaped("x/x/{c}/{n}"),
        said=("left out: x, which holds the folders beside it again (cat, dog)",),
        lost=12,
    ),
    "folders of folders of classes": Case(
        shaped("color/{c}/{n}") | images("gray/cat/1.png", "gray/dog/2.png", first=12),
        {"color": 12, "gray": 2},
        said=("if the classes are cat, dog: --class-from-name '([^/]+)/[^/]+$'\n",),
    ),
    "images and masks in class folders": Case(
        shaped("{c}/Images/{n}") | images("cat/masks/00.png", "dog/masks/01.png", first=12),
        {"cat": 7, "dog": 7},
        said=("; for those in Images alone: --class-from-name '([^/]+)/Images/'\n",),
    ),
    "images of them alone": Case(
        shaped("{c}/Images/{n}") | images("cat/masks/00.png", "dog/masks/01.png", first=12),
        options=("--class-from-name", "([^/]+)/Images/"),
        lost=2,
    ),
    "class folders in images and masks": Case(
        shaped("images/{c}/{n}") | images("masks/cat/00.png", "masks/dog/01.png", first=12),
        {"images": 12, "masks": 2},
        said=("; if the classes are cat, dog: --class-from-name 'images/([^/]+)/'\n",),
    ),
    "masks beside images": Case(
        shaped("{c}/{n}") | images("cat/00_mask.png", "dog/01_mask_1.png", first=12),
        {"cat": 7, "dog": 7},
        said=("WARNING: 2 images called as the mask of another count as images (cat/00_mask.png)",),
    ),
    "without masks": Case(
        shaped("{c}/{n}") | images("cat/00_mask.png", "dog/01_mask_1.png", first=12),
        options=("--class-from-name", "([^/]+)/(?![^/]*_mask)[^/]+$"),
        lost=2,
    ),
    "classes of nearly one name": Case(
        shaped("{c}/{n}") | images("Cat/x.png", first=12),
        {"cat": 6, "dog": 6, "Cat": 1},
        said=("classes of nearly one name are kept apart: 'Cat' and 'cat'\n",),
    ),
    "images that no decoder of ours reads": Case(
        shaped("{c}/{n}") | {"cat/1.HEIC": b"x", "dog/1.heic": b"x"}, lost=2
    ),
    "a tar.gz": Case(shaped("{c}/{n}"), kind="tar.gz"),
    "a folder": Case(shaped("{c}/{n}"), kind="folder"),
    "two archives of different layouts": Case(
        [shaped("{s}/{c}/{n}"), images("cat/x.png", "dog/y.png", first=12)],
        {"cat": 7, "dog": 7},
        {"train": 10, "val": 2, "test": 2},
        ("1.zip: class folders, 2 images, without splits: all go to training",),
    ),
    "labels.csv": Case(FLAT | {"labels.csv": lines(NAMES, CLASSES, head="filename,label")}),
    "labels.csv without headings": Case(FLAT | {"labels.csv": lines(NAMES, CLASSES)}),
    "labels.csv of names in other capitals, with other suffixes": Case(
        images(*(f"img/{n.replace('.png', 'é.PNG')}" for n in NAMES))
        | {"labels.csv": lines([f"IMG/{s}e\u0301.jpg" for s in STEMS], CLASSES)},
        said=(r"labels.csv: 12 names spelt otherwise than the images' (IMG/00",),
    ),
    "labels.csv with the numbers of its rows": Case(
        images(*(f"{i}.png" for i in range(12)))
        | {
            "labels.csv": lines(
                list(map(str, range(12))),
                [f"{i}.png" for i in range(12)][::-1],
                ["x", *CLASSES[1:]],
                head=",datei,tier",
            )
        },
        {"x": 1, "cat": 5, "dog": 6},
        said=("took column 2 'datei' as file, 3 'tier' as class",),
    ),
    "a table with the numbers of its rows, saved twice": Case(
        FLAT | {"all.csv": lines(NUMBERS, STEMS, CLASSES, head="Unnamed: 0,bild,tier")},
        said=("took column 2 'bild' as file, 3 'tier' as class; not used: 1 'Unnamed: 0'",),
    ),
    "labels.csv of Excel": Case(
        FLAT
        | {
            "labels.csv": b"sep=;\r\n"
            + lines(NAMES, CLASSES, [""] * 12, head="datei;tier;", sign=";").replace(
                b"\n", b"\r\n"
            )
        },
        said=("took column 1 'datei' as file, 2 'tier' as class",),
    ),
    "labels.csv with bars": Case(
        FLAT | {"labels.csv": lines(NAMES, CLASSES, head="datei|tier", sign="|")}
    ),
    "a text of Excel in UTF-16": Case(
        FLAT
        | {
            "all.txt": lines(NAMES, CLASSES, head="datei\ttier", sign="\t")
            .decode()
            .encode("utf-16")
        },
    ),
    "labels.csv with the names of folders": Case(
        images(*(f"DATA/{n}/x_{name}" for n, name in zip(NUMBERS, NAMES, strict=True)))
        | {"labels.csv": b"ClassId,Name\n0,cat\n1,dog (5km/h)\n2,eel\n"},
        {"cat": 6, "dog (5km/h)": 6},
        said=("class folders", "labels.csv: took names for numbers, 0 is 'cat'"),
    ),
    "labels.csv of odd classes": Case(
        FLAT
        | {
            "labels.csv": lines(
                NAMES, [f'"{"T-shirt/top" if c == "cat" else "😀, قط"}"' for c in CLASSES]
            )
        },
        {"T-shirt/top": 6, "😀, قط": 6},
    ),
    "labels.json: an object of names": Case(
        FLAT | {"labels.json": json.dumps(dict(zip(NAMES, CLASSES, strict=True))).encode()},
        said=("labels.json: 12 images of 2 classes",),
    ),
    "annotations.json: a list of objects": Case(
        FLAT
        | {
            "annotations.json": json.dumps(
                [{"label": c, "image": n} for c, n in zip(CLASSES, NAMES, strict=True)]
            ).encode()
        },
        said=("took column 2 'image' as file, 1 'label' as class",),
    ),
    "dataset.json: a list of lists, by --labels": Case(
        shaped("{c}/{n}")
        | {
            "dataset.json": json.dumps(
                {"labels": [[p, int(n)] for p, n in zip(PATHS, NUMBERS, strict=True)]}
            ).encode()
        },
        {"0": 6, "1": 6},
        options=("--labels", "dataset.json"),
    ),
    "a one-hot table in each split folder": Case(
        shaped("{s}/{n}")
        | {
            f"{s}/_classes.csv": of_split(
                s, NAMES, [str(1 - int(n)) for n in NUMBERS], NUMBERS, head="filename, cat, dog"
            )
            for s in GIVEN
        },
        splits=GIVEN,
    ),
    "lists with comments, by --labels": Case(
        FLAT
        | {
            "trainval.txt": b"# image class\n"
            + lines(STEMS[:9], CLASSES[:9], NUMBERS[:9], sign=" "),
            "test.txt": lines(STEMS[9:], CLASSES[9:], NUMBERS[9:], sign=" "),
        },
        splits={"train": 7, "val": 2, "test": 3},
        options=("--labels", "trainval.txt", "--labels", "test.txt"),
    ),
    "labels.csv with semicolons": Case(
        FLAT | {"labels.csv": lines(NAMES, CLASSES, head="image;class", sign=";")}
    ),
    "labels.tsv with a byte order mark": Case(
        FLAT
        | {"labels.tsv": b"\xef\xbb\xbf" + lines(NAMES, CLASSES, head="path\tcategory", sign="\t")},
        said=("labels.tsv: 12 images of 2 classes",),
    ),
    "labels.csv without suffixes": Case(
        FLAT | {"labels.csv": lines(STEMS, CLASSES, head="id,target")}
    ),
    "labels.csv with a split": Case(
        FLAT | {"labels.csv": lines(NAMES, CLASSES, SPLITS, head="filename,label,split")},
        splits=GIVEN,
    ),
    "labels.csv with columns in another order": Case(
        FLAT
        | {"labels.csv": lines(SPLITS, NUMBERS, CLASSES, NAMES, head="subset,nr,species,image")},
        splits=GIVEN,
        said=("took column 4 'image' as file, 3 'species' as class, 1 'subset' as split",),
    ),
    "labels.csv with one column for each class": Case(
        FLAT | {"labels.csv": lines(NAMES, [str(1 - int(n)) for n in NUMBERS], NUMBERS,
                                    head="image,cat,dog")},
        said=("2 'cat' to 3 'dog' as one class each",),
    ),
    "labels.csv that misses some": Case(
        FLAT | {"labels.csv": lines([*NAMES[:10], "99.png"], [*CLASSES[:10], "cat"])},
        {"cat": 5, "dog": 5},
        lost=3,
    ),
    "imagefolder: metadata.csv": Case(
        FLAT
        | {"metadata.csv": lines([f"img/{n}" for n in NAMES], CLASSES, head="file_name,label")},
        said=("metadata.csv: 12 images", "took column 1 'file_name' as file, 2 'label' as class"),
    ),
    "imagefolder: metadata.csv in each split": Case(
        shaped("{s}/{n}")
        | {
            f"{split}/metadata.csv": of_split(split, NAMES, CLASSES, head="file_name,label")
            for split in GIVEN
        },
        splits=GIVEN,
    ),
    "imagefolder: metadata.jsonl": Case(
        shaped("set/{n}")
        | {"set/metadata.jsonl": objects(NAMES, CLASSES, SPLITS, keys="file_name label split")},
        splits=GIVEN,
        said=("metadata.jsonl: took column 1 'file_name' as file, 2 'label' as class, 3 'split'",),
    ),
    "imagefolder: metadata.jsonl with numbers and more": Case(
        FLAT
        | {
            "metadata.jsonl": objects(
                NAMES, [{"w": 6}] * 12, list(map(int, NUMBERS)), keys="file_name size label"
            )
        },
        {"0": 6, "1": 6},
        said=("not used: 2 'size'",),
    ),
    "Kaggle: train and test folders, train.csv": Case(
        images(*(f"train/{n}" for n in NAMES), *(f"test/{n}" for n in NAMES[:3]))
        | {
            "train.csv": lines(STEMS, CLASSES, head="id,breed"),
            "sample_submission.csv": lines(STEMS[:3], CLASSES[:3], head="id,breed"),
        },
        {"cat": 6, "dog": 6},
        said=("train.csv: 12 images", "not used: sample_submission.csv (a submission"),
        lost=3,
    ),
    "Kaggle: train_images, test_images, train.csv, test.csv": Case(
        images(*(f"train_images/{n}" for n in NAMES), "test_images/a.png", "test_images/b.png")
        | {
            "train.csv": lines(NAMES, NUMBERS, head="id_code,diagnosis"),
            "test.csv": b"id_code\na.png\nb.png\n",
        },
        {"0": 6, "1": 6},
        said=("not used: test.csv (has no column of classes)",),
        lost=2,
    ),
    "Kaggle: trainLabels.csv": Case(
        shaped("train/{n}") | {"trainLabels.csv": lines(STEMS, CLASSES, head="id,label")},
        said=("trainLabels.csv: 12 images",),
    ),
    "train.csv, val.csv and test.csv about one folder": Case(
        FLAT
        | {f"{s}.csv": of_split(s, NAMES, CLASSES, head="filename,label") for s in GIVEN},
        splits=GIVEN,
        said=("train.csv + val.csv + test.csv: 12 images",),
    ),
    "train.csv and test.csv with equal names in two folders": Case(
        images(*(f"train/{n}" for n in NAMES), *(f"test/{n}" for n in NAMES))
        | {
            "train.csv": lines(NAMES, CLASSES, head="image,label"),
            "test.csv": lines(NAMES, CLASSES[::-1], head="image,label"),
        },
        {"cat": 12, "dog": 12},
        {"train": 10, "val": 2, "test": 12},
        said=("val drawn from train",),
    ),
    "Training_set.csv in a folder of tables": Case(
        FLAT
        | {
            f"tables/{name}_set.csv": of_split(split, NAMES, CLASSES, head="image,label")
            for name, split in zip(("Training", "Validation", "Testing"), GIVEN, strict=True)
        },
        splits=GIVEN,
    ),
    "a table of any name": Case(
        FLAT | {"HAM10k.csv": lines(STEMS, CLASSES, NUMBERS, head="image_id,dx_label,age")},
        options=("--label-column", "dx_label"),
        said=("took column 1 'image_id' as file, 2 'dx_label' as class; not used: 3 'age'",),
    ),
    "a table of any name with two columns": Case(
        FLAT | {"ground truth.tsv": lines(NAMES, CLASSES, head="a\tb", sign="\t")},
        said=("ground truth.tsv: 12 images",),
    ),
    "a table beside one that will not do": Case(
        FLAT | {"a.csv": lines(NAMES, CLASSES), "b.csv": b"x,y\n1.5,2\n"},
        said=("not used: b.csv (names none of its 12 images)",),
    ),
    "paths of another machine": Case(
        shaped("img/{c}/{n}") | {"all.csv": lines([f"C:\\data\\{p}" for p in PATHS], CLASSES)},
        options=("--labels", "all.csv"),
    ),
    "list files": Case(
        FLAT
        | {
            f"{s}.txt": of_split(s, [f"img/{n}" for n in NAMES], CLASSES, head="", sign=" ")
            for s in GIVEN
        },
        splits=GIVEN,
        said=("train.txt: took column 1 as file, 2 as class",),
    ),
    "a list file with numbers before the paths": Case(
        FLAT | {"list.txt": lines(NUMBERS, [f"img/{n}" for n in NAMES], CLASSES, sign=" ")},
    ),
    "a list file of paths with spaces": Case(
        shaped("my img/{n}")
        | {"list.txt": lines([f"my img/{n}" for n in NAMES[:11]], CLASSES[:11], sign=" ")
           + b"11.png dog\n"},
    ),
    "numbers and classes.txt": Case(
        FLAT | {"labels.csv": lines(NAMES, NUMBERS), "classes.txt": b"cat\ndog\n"},
        said=("classes.txt: took names for numbers, 0 is 'cat'",),
    ),
    "numbers from 1 and class_names.txt": Case(
        FLAT
        | {
            "x/list.csv": lines(NAMES, [str(int(n) + 1) for n in NUMBERS], head="image,label"),
            "x/class_names.txt": b"cat\ndog\n",
        },
        said=("1 is 'cat'",),
    ),
    "numbers and numbered names": Case(
        FLAT | {"train.csv": lines(NAMES, NUMBERS), "labels.txt": b"1 dog\n0 cat\n"},
    ),
    "numbers and label_map.json": Case(
        FLAT | {"train.csv": lines(NAMES, NUMBERS), "label_map.json": b'{"cat": 0, "dog": 1}'},
    ),
    "numbers and a list that is too short": Case(
        FLAT | {"labels.csv": lines(NAMES, NUMBERS), "classes.txt": b"cat\n"},
        {"0": 6, "1": 6},
        said=("stay numbers: classes.txt is not used (it has no name for 1)",),
    ),
    "class folders beside a table": Case(
        shaped("{c}/{n}") | {"notes.csv": lines(NAMES, NUMBERS, head="filename,age")},
        said=("not used: notes.csv (--labels FILE takes classes from a table)",),
    ),
    "--labels of a table beside class folders": Case(
        shaped("{c}/{n}") | {"a/notes.csv": lines(NAMES, NUMBERS, head="filename,age"),
                             "labels.csv": lines(NAMES, CLASSES)},
        {"0": 6, "1": 6},
        options=("--labels", "notes.csv"),
        said=("a/notes.csv: took column 1 'filename' as file", "not used: labels.csv"),
    ),
    "half a character in a .jsonl": Case(
        FLAT | {"metadata.jsonl": objects(
            NAMES, [c.replace("og", "\ud800") for c in CLASSES], keys="file_name label"
        )},
        {"cat": 6, "d\ufffd\ufffd\ufffd": 6},
    ),
    "several tables by --labels": Case(
        FLAT | {"a.csv": lines(NAMES[:7], CLASSES[:7]), "b.csv": lines(NAMES[6:], CLASSES[6:])},
        options=("--labels", "a.csv", "--labels", "b.csv"),
        said=("a.csv: took column 1 as file", "b.csv: took column 1 as file"),
    ),
    "tables of splits by --labels, in folders of classes": Case(
        shaped("{c}/{n}") | {
            "my_train.csv": of_split("train", NAMES, CLASSES, head="file,label"),
            "my_test.csv": of_split("test", NAMES, CLASSES, head="file,label"),
        },
        {"cat": 5, "dog": 5},
        options=("--labels", "my_train.csv", "--labels", "my_test.csv"),
        said=("splits as the archive says: train 8, test 2; val drawn from train",),
        lost=2,
    ),
    "folders that are numbers, and classes.txt": Case(
        images(*(f"{n}/{name}" for n, name in zip(NUMBERS, NAMES, strict=True))) | {
            "classes.txt": b"cat\ndog\n"
        },
        said=("class folders", "classes.txt: took names for numbers, 0 is 'cat'"),
    ),
    "an .npz in a ZIP": Case(
        lambda folder: make_zip(folder / "a.zip", {
            "set/data.npz": arrays(
                folder,
                train_images=random(8, 4, 4),
                train_labels=np.arange(8) % 2,
                test_images=random(4, 4, 4)[::-1],
                test_labels=np.arange(4) % 2,
            ).read_bytes(),
            "set/classes.txt": b"cat\ndog\n",
        }),
        splits={"train": 6, "val": 2, "test": 4},
        said=("set/data.npz: arrays, 12 images", "0 is 'cat'"),
    ),
    "a folder of .parquet in a ZIP": Case(
        lambda folder: zipped(parquet(
            folder,
            image=[{"bytes": data, "path": None} for data in PICTURES[:12]],
            label=[int(n) for n in NUMBERS],
        )),
        splits=GIVEN,
        said=("(3 files): parquet, 12 images", "with the names in the file"),
    ),
    "--label-column of class folders with one table": Case(
        shaped("{c}/{n}") | {"notes.csv": lines(NAMES, NUMBERS, CLASSES, head="filename,age,b")},
        {"0": 6, "1": 6},
        options=("--label-column", "age"),
    ),
    "--file-column and --split-column": Case(
        FLAT
        | {
            "labels.csv": lines(
                NAMES, NAMES[::-1], CLASSES, SPLITS, head="id,filename,label,my part"
            )
        },
        {"cat": 6, "dog": 6},
        GIVEN,
        options=("--file-column", "filename", "--split-column", "My_Part"),
        said=("took column 2 'filename' as file, 3 'label' as class, 4 'my part' as split",),
    ),
    "columns by number": Case(
        FLAT | {"t.csv": lines(NAMES, NUMBERS, CLASSES)},
        options=("--label-column", "3"),
        said=("took column 1 as file, 3 as class; not used: 2",),
    ),
    "a column of groups": Case(
        FLAT | {"labels.csv": lines(NAMES, CLASSES, NUMBERS, head="image,label,patient_id")},
        said=("3 'patient_id' as group", "groups (a column): 12 of 12 images in 2 groups"),
    ),
    "a table in an archive of its own": Case(
        [shaped("top/img/{n}"), {
            "notes/list.csv": lines([f"img/{n}" for n in NAMES], CLASSES, head="path,label")
        }],
        said=("list.csv: 12 images", "notes/list.csv: took column 1 'path' as file"),
    ),
    "classes in file names": Case(
        images(*(f"all/{c}.{n}" for c, n in zip(CLASSES, NAMES, strict=True))),
        options=("--class-from-name", r"^(\w+?)\."),
        said=("took the first group of --class-from-name ^(\\w+?)\\. as class",),
    ),
    "parts of images and a table": Case(
        images(*(f"x_images_part_{i % 2}/{n}" for i, n in enumerate(NAMES)))
        | {"x_metadata.csv": lines(NUMBERS, STEMS, CLASSES, head="lesion,image_id,dx")},
        said=("2 'image_id' as file, 3 'dx' as class",),
    ),
    "train.csv, test.csv and one of something else": Case(
        shaped("{s}/{n}") | images("Meta/0.png", "Meta/1.png", first=12)
        | {
            "Train.csv": of_split("train", PATHS_BY_SPLIT, CLASSES, head="Path,ClassId"),
            "Test.csv": of_split("test", PATHS_BY_SPLIT, CLASSES, head="Path,ClassId"),
            "Meta.csv": b"Path,ClassId\nMeta/0.png,cat\nMeta/1.png,dog\n",
        },
        {"cat": 5, "dog": 5},
        {"train": 6, "val": 2, "test": 2},
        ("not used: Meta.csv (named for no split, unlike Train.csv)",),
        lost=4,
    ),
    "class folders and lists of splits": Case(
        shaped("images/{c}/{n}") | {"meta/train.txt": b"cat/00\n", "meta/test.txt": b"cat/02\n"},
        said=("not used: meta/train.txt, meta/test.txt (folders are the classes; each with",),
    ),
    "class folders, and lists of splits by --labels": Case(
        shaped("x/images/{c}/{n}")
        | {
            f"x/meta/{s}.txt": "".join(
                f"{c}/{stem}\n" for c, stem, t in zip(CLASSES, STEMS, SPLITS, strict=True) if t == s
            ).encode()
            for s in GIVEN
        },
        splits=GIVEN,
        options=tuple(word for s in GIVEN for word in ("--labels", f"{s}.txt")),
        said=("x/meta/train.txt: took column 1 as file, the folders as class",),
    ),
    "class folders, and a table of splits by --labels": Case(
        shaped("data/{c}/{n}")
        | {"index.csv": lines([f"/home/me/data/{p}" for p in PATHS], SPLITS, head="path,split")},
        splits=GIVEN,
        options=("--labels", "index.csv"),
        said=("took column 1 'path' as file, the folders as class, 2 'split' as split",),
    ),
    "classes in paths, with splits": Case(
        shaped("{s}/{n}_{c}_x.png") | images("train/odd.png", first=12),
        splits=GIVEN,
        options=("--class-from-name", r"([0-9.a-z]+)/?_(?P<class>cat|dog)_"),
        said=("the group 'class'",),
        lost=1,
    ),
    "WebDataset: shards with .cls": Case(
        lambda folder: shards(folder, "cls", NUMBERS),
        {"0": 6, "1": 6},
        GIVEN,
        (
            "WebDataset: 12 images of 2 classes\n",
            "test-000000.tar … val-000000.tar (4 files): WebDataset, 12 images\n",
            "took classes from .cls\n",
        ),
    ),
    "WebDataset: shards with .json and classes.txt": Case(
        lambda folder: shards(
            folder, "json", [{"w": 5, "label": int(n)} for n in NUMBERS], classes__txt=b"cat\ndog"
        ),
        splits=GIVEN,
        said=("took classes from 'label' in .json", "classes.txt: took names for numbers"),
    ),
    "WebDataset: one tar": Case(
        lambda folder: make_tar(folder / "a.tar", samples("", "cls") | {"x.png": PICTURES[13]}),
        lost=1,
    ),
    "WebDataset: --label-column": Case(
        lambda folder: make_tar(
            folder / "a.tar", samples("", "json", [{"kind": c, "n": 1} for c in CLASSES])
        ),
        options=("--label-column", "kind"),
        said=("took classes from 'kind' in .json",),
    ),
    "WebDataset: shards of our own": Case(our_shards, splits=GIVEN, said=("WebDataset",)),
    "MedMNIST": Case(
        lambda folder: arrays(
            folder,
            **{f"{s}_images": random(n, 5, 6, 3) for s, n in GIVEN.items()},
            **{f"{s}_labels": np.arange(n)[:, None] % 2 for s, n in GIVEN.items()},
        ),
        {"0": 6, "1": 6},
        GIVEN,
        ("arrays: 12 images", "took train_images with train_labels as classes, val_images"),
    ),
    "arrays x_train and y_train": Case(
        lambda folder: arrays(
            folder, x_train=random(9, 5, 6), y_train=np.arange(9) % 3, y_more=np.arange(3)
        ),
        {"0": 3, "1": 3, "2": 3},
        said=("not used: y_more",),
    ),
    "parquet: images with names of classes": Case(
        lambda folder: parquet(
            folder,
            image=[{"bytes": data, "path": None} for data in PICTURES[:12]],
            label=list(map(int, NUMBERS)),
        ),
        splits=GIVEN,
        said=("took column 'image' as image, 'label' as class, with the names in the file\n",),
    ),
    "parquet: bytes and words": Case(
        lambda folder: parquet(
            folder,
            names=False,
            png=[*PICTURES[:11], None],
            what=[c.replace("dog", "T - shirt / top") for c in CLASSES],
            nr=list(range(12)),
        ),
        {"cat": 6, "T - shirt / top": 5},
        {"train": 8, "val": 2, "test": 1},
        ("took column 'png' as image, 'what' as class; not used: nr",),
        lost=1,
        options=("--label-column", "what"),
    ),
}  # fmt: skip


def archives(folder: Path, case: Case) -> list[Path]:
    if callable(case.files):
        return [case.files(folder)]
    parts = case.files if isinstance(case.files, list) else [case.files]
    made = [make_zip(folder / f"{i}.zip", part) for i, part in enumerate(parts)]
    if case.kind == "zip":
        return made
    with zipfile.ZipFile(made[0]) as archive:
        archive.extractall(folder / "0")
    if case.kind == "tar.gz":
        with tarfile.open(folder / "0.tar.gz", "w:gz") as tar:
            tar.add(folder / "0", ".")
        return [folder / "0.tar.gz"]
    return [folder / "0"]


@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_read(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    sources, out = archives(tmp_path, case), tmp_path / "out"
    result = convert(*sources, out, "--size", 4, *case.options)
    assert result.exit_code == 0, result.output
    manifest = Manifest.load(out)
    counts = [split.class_counts for split in manifest.splits.values()]
    assert dict(zip(manifest.classes, map(sum, zip(*counts, strict=True)), strict=True)) == (
        case.classes
    )
    splits = {name: split.num_images for name, split in manifest.splits.items()}
    if case.splits is not None:
        assert splits == case.splits
    for words in case.said:
        assert words in result.stdout
    assert len(rejects(out)) == case.lost, rejects(out)
    # A dry run recognises the same, and says the same of it.
    preview = convert(*sources, "--dry-run", *case.options)
    assert preview.exit_code == 0, preview.output
    recognised = preview.stdout.split("\n\n")[0]
    assert result.stdout.startswith(recognised)
    assert preview.stdout.splitlines()[-1] == "nothing was converted (--dry-run)"


REFUSALS: dict[str, tuple[Files, tuple[str, ...], tuple[str, ...]]] = {
    "flat images": (FLAT, (), ("only one class, 'img'", "or a table of file names")),
    "flat split folders": (
        images(*(f"cars_{'test' if i % 3 else 'train'}/{n}" for i, n in enumerate(NAMES)))
        | {"annotations/instances.json": b'{"images": [{"id": 1}], "annotations": []}'},
        (),
        ("no class folders", "it is no JSON of file names and classes"),
    ),
    "boxes beside images": (
        {
            f"train/{kind}/{s}.{suffix}": PICTURES[0] if suffix == "jpg" else b"0 0.5 0.5 1 1\n"
            for s in STEMS
            for kind, suffix in (("images", "jpg"), ("labels", "txt"))
        },
        (),
        ("only one class, 'images'", "labels/00.txt (about the image of its name alone)"),
    ),
    "images that no decoder of ours reads": (
        {f"{p}.heic": b"x" for p in PATHS},
        (),
        ("holds no images that can be read", "a .heic is not read: save it as PNG or JPEG"),
    ),
    "a table of names that are twice there": (
        shaped("a/{n}") | shaped("b/{n}") | {"labels.csv": lines(NAMES, CLASSES)},
        (),
        ("names that several images have. Write their paths, such as a/00.png",),
    ),
    "pixels in a table": (
        {"set/train.csv": b"label,p0,p1\n1,0,255\n"},
        (),
        ("holds no images", "Pixels in set/train.csv are not read", "numpy.savez"),
    ),
    "a table of other names": (
        FLAT | {"labels.csv": lines([f"x{n}" for n in NAMES], CLASSES)},
        (),
        ("names none of its 12 images", "They are called such as img/00.png"),
    ),
    "classes in file names": (
        images(*(f"{c}_{n}" for c, n in zip(CLASSES, NAMES, strict=True))),
        (),
        ("no class folders", "begin with 2 words (cat, dog): --class-from-name '"),
    ),
    "cats and dogs in train, no classes in test1": (
        images(*(f"train/{c}.{n}" for c, n in zip(CLASSES, NAMES, strict=True)), "test1/1.png")
        | {"sampleSubmission.csv": b"id,label\n1,0\n"},
        (),
        (
            "no class folders",
            "begin with 2 words (cat, dog): --class-from-name '",
            "sampleSubmission.csv (a submission, not labels)",
        ),
    ),
    "parts of images and a table that will not do": (
        images(*(f"images_{i % 2}/{n}" for i, n in enumerate(NAMES)))
        | {"info.csv": lines(STEMS, NUMBERS, CLASSES, head="image,p,q")},
        (),
        ("no class folders", "info.csv (which of its columns is the class: p, q?"),
    ),
    "two tables": (
        FLAT | {"a.csv": lines(NAMES, CLASSES), "b.csv": lines(NAMES, NUMBERS)},
        (),
        ("several tables of classes: a.csv, b.csv", "--labels a.csv"),
    ),
    "tables that will not do": (
        FLAT | {"a.csv": b"x,y\n1,2\n", "b.csv": lines(NAMES, NUMBERS, CLASSES, head="image,p,q")},
        (),
        (
            "a.csv (names none of its 12 images)",
            "b.csv (which of its columns is the class: p, q?",
            "--labels FILE, --file-column and --label-column",
        ),
    ),
    "a table in another format": (FLAT | {"data.xlsx": b"x"}, (), ("Save data.xlsx as CSV",)),
    "a column that is not there": (
        FLAT | {"labels.csv": lines(NAMES, CLASSES, head="filename,label")},
        ("--label-column", "lable"),
        (
            "--label-column 'lable'",
            "no such column",
            "Did you mean 'label'? It has filename, label",
        ),
    ),
    "a column of no files": (
        FLAT | {"labels.csv": lines(NAMES, CLASSES, head="filename,label")},
        ("--file-column", "label"),
        ("names none of its 12 images in its column 'label'",),
    ),
    "a column of no table": (
        shaped("{c}/{n}"),
        ("--label-column", "x"),
        ("--label-column x is for a table", "none about its images", "--labels"),
    ),
    "labels that are nowhere": (
        FLAT,
        ("--labels", "no.csv"),
        ("--labels no.csv: there is no such file",),
    ),
    "labels that are twice there": (
        FLAT | {"a/t.csv": b"", "b/t.csv": b""},
        ("--labels", "t.csv"),
        ("holds several: a/t.csv, b/t.csv",),
    ),
    "a table of names alone": (
        shaped("{c}/{n}") | {"list.txt": lines(PATHS)},
        ("--labels", "list.txt"),
        ("list.txt in 0.zip has no column of classes, and none of splits",),
    ),
    "an expression without a group": (FLAT, ("--class-from-name", "cat"), ("has no group",)),
    "a wrong expression": (FLAT, ("--class-from-name", "(("), ("is no regular expression",)),
    "an expression that finds nothing": (
        FLAT,
        ("--class-from-name", "(x)"),
        ("finds no class in any of the 12 names", "such as 00.png"),
    ),
    "an expression and a table": (
        FLAT,
        ("--class-from-name", "(x)", "--labels", "x.csv"),
        ("give one of them",),
    ),
    "a line that is no object": (
        FLAT | {"metadata.jsonl": b'{"file_name": "00.png"}\n[1]\n'},
        ("--labels", "metadata.jsonl"),
        ("metadata.jsonl in 0.zip cannot be read (line 2 is no JSON object)",),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_what_was_seen_and_what_would_read_it(tmp_path: Path, name: str) -> None:
    files, options, words = REFUSALS[name]
    archive = make_zip(tmp_path / "0.zip", files)
    refused(convert(archive, tmp_path / "out", *options), *words)
    refused(convert(archive, "--dry-run", *options), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["0.zip"]


BAD_ARRAYS: dict[str, tuple[dict[str, npt.NDArray[Any]], str]] = {
    "of other names": ({"a": random(3), "b": random(3)}, "holds the arrays a, b, of which none"),
    "of floats": (
        {"images": np.ones((3, 4, 4)), "labels": np.arange(3)},
        "float64 of shape (3, 4, 4)",
    ),
    "of volumes": ({"images": random(3, 4, 4, 4), "labels": np.arange(3)}, "(3, 4, 4, 4)"),
    "of several classes an image": (
        {"images": random(3, 4, 4), "labels": np.ones((3, 2), int)},
        "One class for each image",
    ),
    "of other lengths": ({"images": random(3, 4, 4), "labels": np.arange(2)}, "3 and 2 rows"),
    "of objects": (
        {"images": random(1, 4, 4), "labels": np.array([{}])},
        "Object arrays cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_images_and_classes_are_refused(tmp_path: Path, name: str) -> None:
    content, words = BAD_ARRAYS[name]
    path = arrays(tmp_path, **content)
    refused(convert(path, tmp_path / "out"), words)
    path.write_bytes(path.read_bytes()[:-30])
    refused(convert(path, tmp_path / "out"), "cannot be read as an .npz")
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_the_pixels_of_arrays_are_kept(tmp_path: Path) -> None:
    images = random(8, 5, 6, 3)
    path = arrays(tmp_path, images=images, labels=np.arange(8) % 2)
    result = convert(path, tmp_path / "out", "--size", "5x6", "--val", 0, "--test", 0)
    assert result.exit_code == 0, result.output
    assert sorted(pixels(tmp_path / "out", "train").tolist()) == sorted(images.tolist())


def test_a_json_without_a_class_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", samples("", "json", [{"w": 1, "kind": "x"}] * 12))
    words = ("0000.json in a.tar", "which of its keys is the class: w, kind?", "--label-column")
    refused(convert(path, tmp_path / "out"), *words)


def test_parquet_without_pyarrow_is_refused_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    words = ("a.parquet", "pip install 'hpc-mlp[parquet]'")
    refused(convert(tmp_path / "a.parquet", tmp_path / "out"), *words)


def test_parquet_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    root = parquet(tmp_path, names=False, a=PICTURES[:12], b=PICTURES[:12], p=CLASSES, q=CLASSES)
    choose = ("of bytes are a, b. Choose with --file-column",)
    refused(convert(root, tmp_path / "out"), *choose)
    which = ("which of its columns is the class: b, p, q? Say it with --label-column",)
    refused(convert(root, tmp_path / "out", "--file-column", "a"), *which)
    wrong = ("--label-column 'z'", "no such column", "It has b, p, q")
    refused(convert(root, tmp_path / "out", "--file-column", "a", "--label-column", "z"), *wrong)
    for path in (root / "data").iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    refused(convert(root, tmp_path / "out"), "cannot be read as a parquet file")


DAMAGED: dict[str, Callable[[Path], Path]] = {
    "npz": lambda folder: arrays(folder, images=random(8, 4, 4), labels=np.arange(8) % 2),
    "parquet": lambda folder: next(
        (parquet(folder, png=PICTURES[:12], x=CLASSES) / "data").iterdir()
    ),
    "tar": lambda folder: make_tar(
        folder / "a.tar", samples("", "json", [{"label": c} for c in CLASSES])
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused_or_read_as_far_as_they_go(tmp_path: Path, kind: str) -> None:
    """Whatever the bytes, no error of ours: `convert` lets exceptions through."""
    path = DAMAGED[kind](tmp_path)
    whole, copy = path.read_bytes(), tmp_path / f"copy.{kind}"
    codes = set()
    for seed in range(60):
        copy.write_bytes(mutated_bytes(whole, Random(seed)))
        result = convert(copy, "--dry-run") if seed % 6 else convert(copy, tmp_path / "out")
        codes.add(result.exit_code)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert {2} <= codes <= {0, 2}


TABLES = {
    "train.csv": lines(NAMES, CLASSES, SPLITS, head="image,label,split"),
    "metadata.jsonl": objects(NAMES, CLASSES, SPLITS, keys="file_name label split"),
    "list.txt": lines(NAMES, NUMBERS, sign=" "),
    "labels.json": json.dumps(dict(zip(NAMES, CLASSES, strict=True))).encode(),
}


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables_are_refused_or_read_as_far_as_they_go(tmp_path: Path, name: str) -> None:
    codes = set()
    for seed in range(60):
        files = FLAT | {
            name: mutated_bytes(TABLES[name], Random(seed)),
            "classes.txt": mutated_bytes(b"0 cat\n1 dog\n", Random(seed)),
        }
        codes.add(convert(make_zip(tmp_path / "a.zip", files), "--dry-run").exit_code)
    assert codes == {0, 2}


def test_labels_outside_the_archive(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "0.zip", shaped("top/img/{c}/{n}"))
    table = tmp_path / "my labels.csv"
    digests = []
    for places in (CLASSES, CLASSES[::-1]):
        table.write_bytes(lines(PATHS, places, SPLITS, head="file,label,split"))
        result = convert(archive, tmp_path / "out", "--labels", table, "--size", 4, "--overwrite")
        assert result.exit_code == 0, result.output
        assert "my labels.csv: 12 images of 2 classes\n" in result.stdout
        manifest = Manifest.load(tmp_path / "out")
        assert {s: split.num_images for s, split in manifest.splits.items()} == GIVEN
        digests.append(manifest.source["sha256"])
    # The table is part of the input.
    assert digests[0] != digests[1] and manifest.source["name"] == "0.zip + my labels.csv"
    assert manifest.settings["labels"] == table.name
    copy = tmp_path / "elsewhere" / table.name
    copy.parent.mkdir()
    shutil.copy(table, copy)
    again = convert(archive, tmp_path / "again", "--labels", copy, "--size", 4)
    assert again.exit_code == 0, again.output
    assert Manifest.load(tmp_path / "again").source == manifest.source


def test_in_python_it_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = make_zip(tmp_path / "0.zip", shaped("{c}/{n}"))
    hpc_mlp.convert(archive, tmp_path / "plain", size=4, val=0.2, test=0.2)
    assert "class folders" not in capsys.readouterr().out
    odd = shaped("{c}/{n}") | {"eel/1.png": b"no image", "cat/a.heic": b"x", "notes.csv": b""}
    hpc_mlp.convert(make_zip(tmp_path / "1.zip", odd), tmp_path / "odd", size=4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "class folders: 13 images of 3 classes, 1 other file ignored"
    assert "  not used: notes.csv (--labels FILE takes classes from a table)" in lines
    assert any(line.startswith("2 rejects, see ") for line in lines)
    assert "WARNING: left out, as no image of theirs can be read: 'eel'" in lines


def test_in_python_the_options_are_the_same(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "0.zip", FLAT)
    table = tmp_path / "all.tsv"
    table.write_bytes(lines(NAMES, CLASSES, SPLITS, NUMBERS, head="a\tb\tc\td", sign="\t"))
    manifest = hpc_mlp.convert(
        archive, tmp_path / "out", size=4, labels=table, label_column="d", split_column="c"
    )
    assert manifest.classes == ("0", "1")
    assert {name: split.num_images for name, split in manifest.splits.items()} == GIVEN
    named = hpc_mlp.convert(archive, tmp_path / "named", size=4, class_from_name="([0-9])[.]png")
    assert manifest.classes != named.classes == tuple("0123456789")


def test_a_text_beside_each_image_is_no_table_to_look_for(tmp_path: Path) -> None:
    texts = {f"img/{stem}-{i}.txt": b"0 0.5 0.5 1 1" for stem in STEMS for i in range(5)}
    archive = make_zip(tmp_path / "0.zip", texts | FLAT)
    words = ("only one class", "28 texts and tables that were not looked into")
    refused(convert(archive, tmp_path / "out"), *words)
    table = {"tables/z.csv": lines(NAMES, CLASSES, head="image,label")}
    archive = make_zip(tmp_path / "1.zip", texts | FLAT | table)
    result = convert(archive, "--dry-run")
    assert result.stdout.startswith("z.csv: 12 images of 2 classes, 60 other files ignored\n")
    refused(
        convert(
            make_tar(tmp_path / "a.tar", samples("", "cls")), "--dry-run", "--file-column", "x"
        ),
        "--file-column x is for a table: a.tar is a WebDataset",
    )


def test_a_dry_run_shows_classes_counts_and_splits(tmp_path: Path) -> None:
    files = shaped("{s}/{c}/{n}") | {"stray.png": PICTURES[12], "other.png": PICTURES[13]}
    archive = make_zip(tmp_path / "0.zip", files)
    result = convert(archive, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "split folders: 12 images of 2 classes",
        "  splits as the archive says: train 8, val 2, test 2",
        "",
        "class  train  val  test",
        "cat        4    1     1",
        "dog        4    1     1",
        "all        8    2     2",
        "",
        "left out: 2, not in a class folder below train, val or test (stray.png)",
        "nothing was converted (--dry-run)",
    ]
    assert not (tmp_path / "out").exists()
    drawn = make_zip(tmp_path / "1.zip", shaped("{c}/{n}"))
    result = convert(drawn, "--dry-run", "--val", "0.2")
    assert "all        8    2     2\n" in result.stdout
    assert "val and test will be drawn, with equal images kept together" in result.stdout
