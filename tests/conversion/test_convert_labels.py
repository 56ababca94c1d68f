"""What says classes and splits is used, or it is said that it is not: through the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.archives import convert, encoded, make_zip, picture, refused, rejects

from hpc_mlp.cli import main
from hpc_mlp.data.manifest import Manifest

NAMES = [f"{i:02d}.png" for i in range(12)]
IMAGES = {f"img/{name}": encoded(picture(i)) for i, name in enumerate(NAMES)}
CLASSES = ["cat", "dog"] * 6
SPLITS = ["train"] * 8 + ["val"] * 2 + ["test"] * 2


def table(*columns: list[str], head: str = "", sign: str = ",") -> bytes:
    rows = [head] * bool(head) + [sign.join(row) for row in zip(*columns, strict=True)]
    return "\n".join(rows).encode()


def images(*names: str) -> dict[str, bytes]:
    return {name: encoded(picture(i)) for i, name in enumerate(names)}


def taken(
    tmp_path: Path, files: Mapping[str, bytes] | Sequence[Mapping[str, bytes]]
) -> tuple[Manifest, str]:
    """The manifest, and what was said."""
    parts = [files] if isinstance(files, Mapping) else files
    archives = [make_zip(tmp_path / f"{i}.zip", part) for i, part in enumerate(parts)]
    result = convert(*archives, tmp_path / "out", "--size", 4)
    assert result.exit_code == 0, result.output
    return Manifest.load(tmp_path / "out"), result.stdout


def counts(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    return {name: split.class_counts for name, split in manifest.splits.items()}


GIVEN = {"train": (4, 4), "val": (1, 1), "test": (1, 1)}


@pytest.mark.parametrize(
    "head, columns, said",
    [
        (
            "filename,label,split",
            [NAMES, CLASSES, SPLITS],
            "labels.csv: took column 1 'filename' as file, 2 'label' as class, "
            "3 'split' as split\n",
        ),
        (
            "id,note,filename,size,label,set",
            [CLASSES, CLASSES, NAMES, CLASSES, CLASSES, SPLITS],
            "took column 3 'filename' as file, 5 'label' as class, 6 'set' as split; "
            "not used: 1 'id', 2 'note', 4 'size'\n",
        ),
        (
            "",
            [NAMES, CLASSES, [s.upper() for s in SPLITS]],
            "took column 1 as file, 2 as class, 3 as split\n",
        ),
        (
            "partition,species,image",
            [["Training"] * 8 + ["Validation"] * 2 + ["testing"] * 2, CLASSES, NAMES],
            "took column 3 'image' as file, 2 'species' as class, 1 'partition' as split\n",
        ),
    ],
)
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_split_column_is_used_and_columns_are_found_by_their_headings(
    tmp_path: Path, head: str, columns: list[list[str]], said: str, sign: str
) -> None:
    content = table(*columns, head=head.replace(",", sign), sign=sign)
    manifest, output = taken(tmp_path, IMAGES | {"labels.csv": content})
    assert counts(manifest) == GIVEN and manifest.classes == ("cat", "dog")
    assert said in output
    assert "splits as the archive says: train 8, val 2, test 2" in output


def test_a_column_that_is_not_used_is_named(tmp_path: Path) -> None:
    fold = [str(i % 3) for i in range(12)]
    content = table(NAMES, CLASSES, NAMES, fold, head="file name,Class,size,fold")
    manifest, output = taken(tmp_path, IMAGES | {"labels.csv": content})
    assert (
        "took column 1 'file name' as file, 2 'Class' as class; not used: 3 'size', 4 'fold'"
        in output
    )
    assert sum(split.num_images for split in manifest.splits.values()) == 12


@pytest.mark.parametrize("wrong", ["trian", "", "0"])
def test_a_wrong_split_is_an_error_that_names_the_line(tmp_path: Path, wrong: str) -> None:
    content = table(NAMES, CLASSES, [*SPLITS[:-1], wrong], head="filename,label,split")
    archive = make_zip(tmp_path / "a.zip", IMAGES | {"labels.csv": content})
    refused(convert(archive, tmp_path / "out"), "line 13", repr(wrong), "none of train, val, test")


def test_one_hot_columns_are_the_classes(tmp_path: Path) -> None:
    cats = ["1" if name == "cat" else "0" for name in CLASSES]
    dogs = ["1.0" if name == "dog" else "0.0" for name in CLASSES]
    content = table(NAMES, cats, dogs, SPLITS, head="image,cat,dog,split")
    manifest, output = taken(tmp_path, IMAGES | {"labels.csv": content})
    assert counts(manifest) == GIVEN and manifest.classes == ("cat", "dog")
    assert "2 'cat' to 3 'dog' as one class each, 4 'split' as split" in output


@pytest.mark.parametrize(
    "head, columns, words",
    [
        (
            "image,cat,dog",
            [NAMES, ["1"] * 12, ["0", "1"] * 6],
            "line 3: 2 of the columns of classes are 1",
        ),
        ("", [NAMES, ["1", "0"] * 6, ["0", "1"] * 6], "no headings"),
        (
            "image,wings,legs",
            [NAMES, ["2"] * 12, ["0", "1"] * 6],
            "which of its columns is the class: wings, legs?",
        ),
        ("image", [NAMES], "no column of classes"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(
    tmp_path: Path, head: str, columns: list[list[str]], words: str
) -> None:
    archive = make_zip(tmp_path / "a.zip", IMAGES | {"labels.csv": table(*columns, head=head)})
    refused(convert(archive, tmp_path / "out"), words)


def test_an_image_of_two_classes_is_not_taken(tmp_path: Path) -> None:
    content = table([*NAMES, NAMES[0]], [*CLASSES, "eel"])
    manifest, _ = taken(tmp_path, IMAGES | {"labels.csv": content})
    assert (
        sum(split.num_images for split in manifest.splits.values()) == 11
        and manifest.num_rejects == 1
    )
    assert rejects(tmp_path / "out") == {
        NAMES[0]: "listed twice in labels.csv, as 'cat' and as 'eel'"
    }


def test_split_folders_count_beside_a_table_of_classes(tmp_path: Path) -> None:
    files = images(*(f"{split}/{name}" for split, name in zip(SPLITS, NAMES, strict=True)))
    manifest, output = taken(tmp_path, files | {"labels.csv": table(NAMES, CLASSES)})
    assert counts(manifest) == GIVEN and "splits as the archive says" in output


def test_splits_inside_class_folders_are_used(tmp_path: Path) -> None:
    files = images(
        *(f"{c}/{s}/{n}" for c, s, n in zip(CLASSES, SPLITS, NAMES, strict=True)), "cat/stray.png"
    )
    manifest, output = taken(tmp_path, {f"top/{name}": data for name, data in files.items()})
    assert counts(manifest) == GIVEN and manifest.layout == "class folders with splits inside"
    assert rejects(tmp_path / "out") == {
        "top/cat/stray.png": "not in a folder train, val or test below its class folder"
    }
    assert "splits as the archive says: train 8, val 2, test 2" in output


def test_sub_folders_of_classes_are_said(tmp_path: Path) -> None:
    files = images(*(f"{c}/{i % 2}/{i}.png" for c in ("cat", "dog") for i in range(6)))
    manifest, output = taken(tmp_path, files)
    assert manifest.classes == ("cat", "dog")
    assert "sub-folders of a class folder count as the class: cat/0 as cat" in output


def test_archives_of_different_layouts_are_read_each_by_its_own(tmp_path: Path) -> None:
    one = images(*(f"{s}/{c}/{n}" for c, s, n in zip(CLASSES, SPLITS, NAMES, strict=True)))
    other = images(*(f"{c}/more{i}.png" for c in ("cat", "dog") for i in range(3)))
    third = images(*(f"{i}.png" for i in range(4))) | {"labels.csv": b"0,cat\n1,dog\n2,cat\n3,dog"}
    manifest, output = taken(tmp_path, [one, other, third])
    assert (
        counts(manifest) == {"train": (9, 9), "val": (1, 1), "test": (1, 1)}
        and manifest.num_rejects == 0
    )
    assert "0.zip: split folders, 12 images\n" in output
    assert "1.zip: class folders, 6 images, without splits: all go to training\n" in output
    assert "2.zip: labels.csv, 4 images, without splits: all go to training\n" in output


def test_each_split_may_be_an_archive_and_the_table_too(tmp_path: Path) -> None:
    parts = [
        {
            f"{split}/{c}/{i}.png": encoded(picture(100 * k + i))
            for c in ("cat", "dog")
            for i in range(3)
        }
        for k, split in enumerate(("train", "test"))
    ]
    manifest, _ = taken(tmp_path, parts)
    assert manifest.splits["test"].class_counts == (3, 3)
    files: list[Mapping[str, bytes]] = [IMAGES, {"labels.csv": table(NAMES, CLASSES, SPLITS)}]
    folder = tmp_path / "apart"
    folder.mkdir()
    assert counts(taken(folder, files)[0]) == GIVEN


@pytest.mark.parametrize("form", ["folders", "inside", "table"])
def test_a_class_without_training_images_is_named(tmp_path: Path, form: str) -> None:
    classes, splits = [*CLASSES, "eel", "eel"], [*SPLITS, "val", "val"]
    names = [*NAMES, "x.png", "y.png"]
    if form == "table":
        files = images(*names) | {"labels.csv": table(names, classes, splits)}
    else:
        shape = "{1}/{0}/{2}" if form == "folders" else "{0}/{1}/{2}"
        files = images(*(shape.format(*row) for row in zip(classes, splits, names, strict=True)))
    manifest, output = taken(tmp_path, files)
    assert manifest.classes == ("cat", "dog") and counts(manifest) == GIVEN
    assert "WARNING: class 'eel' has no training images: its 2 in val are left out" in output
    assert set(rejects(tmp_path / "out").values()) == {"class 'eel' has no training images"}


def test_a_class_of_which_nothing_can_be_read_is_named(tmp_path: Path) -> None:
    files = images(*(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)))
    manifest, output = taken(tmp_path, files | {f"eel/{i}.png": b"no image" for i in range(3)})
    assert manifest.classes == ("cat", "dog")
    assert "WARNING: left out, as no image of theirs can be read: 'eel'\n" in output


@pytest.mark.parametrize(
    "name", ["train.csv", "metadata.jsonl", "set/labels_train.tsv", "data.parquet", "list.txt"]
)
def test_a_table_that_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    flat = make_zip(tmp_path / "flat.zip", IMAGES | {name: b"x"})
    refused(convert(flat, tmp_path / "no"), "only one class", name)
    folders = images(*(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)))
    _, output = taken(tmp_path, folders | {name: b"x"})
    assert (f"not used: {name} (--labels FILE takes classes from a table)" in output) == (
        name != "list.txt"
    )


def test_names_that_would_act_on_a_terminal_are_shown_harmless(tmp_path: Path) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\u202e\x9b"
    files = images(*(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(6)))
    files |= {f"{evil}.csv": b"", f"cat/{evil}/1.png": b"no image"}
    manifest, output = taken(tmp_path, files)
    lines = [
        output,
        convert(
            make_zip(tmp_path / "one.zip", {f"{evil}/1.png": files["cat/1.png"]}), tmp_path / "x"
        ).output,
    ]
    content = table(NAMES, CLASSES, SPLITS, head=f"filename,label,split{evil}")
    lines.append(
        convert(
            make_zip(tmp_path / "b.zip", IMAGES | {"labels.csv": content}), tmp_path / "y"
        ).output
    )
    for text in lines:
        assert not set(text) & set("\x1b\x07\x9b\u202e") and "\\x1b" in text
    assert manifest.num_rejects == 1
    assert json.loads((tmp_path / "out" / "rejects.jsonl").read_text())["reason"] == "not an image"


def test_several_tables_each_for_its_own_folder(tmp_path: Path) -> None:
    files = images(*(f"{s}/{n}" for s, n in zip(SPLITS, NAMES, strict=True)))
    for split in ("train", "val", "test"):
        here = [i for i, s in enumerate(SPLITS) if s == split]
        files[f"{split}/labels.csv"] = table([NAMES[i] for i in here], [CLASSES[i] for i in here])
    manifest, output = taken(tmp_path, files)
    assert counts(manifest) == GIVEN and output.count(": took column") == 3


# ── tiny and unbalanced classes
# ─────────────────────────────────────────────────────────────────────────


def test_tiny_and_unbalanced_classes_are_said_by_convert_and_inspect(tmp_path: Path) -> None:
    sizes = {"rare": 5, "some": 60, "many": 120}
    names = [f"{c}/{i}.png" for c, size in sizes.items() for i in range(size)]
    manifest, output = taken(tmp_path, images(*names))
    assert counts(manifest)["train"] == (96, 3, 48) and counts(manifest)["test"] == (12, 1, 6)
    lines = [
        "WARNING: 1 of 3 classes has fewer than 10 training images ('rare' 3): there is little to "
        "learn from",
        "WARNING: 1 of 3 classes has fewer than 5 test images ('rare' 1): their precision, recall "
        "and F1 say next to "
        "nothing",
        "unbalanced: of the test images 63.2 % are 'many' and 5.3 % 'rare'; always answering the "
        "first has an accuracy "
        "of 63.2 %: look at macro F1",
    ]
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")]).stdout
    for line in lines:
        assert f"{line}\n" in output and f"{line}\n" in shown


def test_balanced_classes_that_are_large_enough_are_not_spoken_of(tmp_path: Path) -> None:
    _, output = taken(tmp_path, images(*(f"{c}/{i}.png" for c in "ab" for i in range(60))))
    assert "WARNING: " not in output and "unbalanced" not in output


def test_a_split_without_images_is_said(tmp_path: Path) -> None:
    _, output = taken(tmp_path, images(*(f"{c}/{i}.png" for c in "abcd" for i in range(2))))
    assert (
        "WARNING: val has no images: no best epoch can be chosen. Give each class at least three "
        "images" in output
    )
    assert (
        "WARNING: 4 of 4 classes have fewer than 10 training images ('a' 1, 'b' 1, 'c' 1 and 1 "
        "more)" in output
    )


def test_out_alone_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert", "photos.zip"])
    assert result.exit_code == 2
    assert "OUT is missing: hpc-mlp convert photos.zip shards" in result.stderr
