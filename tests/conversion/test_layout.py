"""From the names in an archive to classes and splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_mlp.conversion.archive import MAX_ENTRY_BYTES, Names, SeveralSources
from hpc_mlp.conversion.layout import Layout, find_layout
from hpc_mlp.errors import RejectError, UserError
from hpc_mlp.terminal.text import natural_key

SPLITS = {-1: "", 0: "train", 1: "val", 2: "test"}


class Listing:
    """A source in memory: names, and the bytes of those that are read."""

    label = "a.zip"

    def __init__(
        self, files: Mapping[str, bytes] | Iterable[str], problems: Mapping[str, str] | None = None
    ) -> None:
        self.files = files if isinstance(files, Mapping) else dict.fromkeys(files, b"")
        self.names = Names(self.files)
        self.problems = {
            list(self.files).index(name): why for name, why in (problems or {}).items()
        }

    def read(self, index: int, limit: int = MAX_ENTRY_BYTES) -> bytes:
        if index in self.problems:
            raise RejectError(self.problems[index])
        return self.files[self.names[index]]

    def size(self, index: int) -> int:
        return len(self.read(index))

    def sha256(self) -> str:
        return ""

    def close(self) -> None:
        pass


def placed(layout: Layout, source: Listing | SeveralSources) -> dict[str, tuple[str, str]]:
    """Name → class and split."""
    entries = layout.entries.tolist()
    assert entries == sorted(entries)
    rows = zip(entries, layout.labels.tolist(), layout.splits.tolist(), strict=True)
    return {source.names[i]: (layout.classes[label], SPLITS[split]) for i, label, split in rows}


CAT_AND_DOG = {"cat/1.png": ("cat", ""), "dog/1.png": ("dog", "")}


@pytest.mark.parametrize(
    "kind, wanted, lost",
    [
        ("class folders", CAT_AND_DOG, []),
        ("class folders", {"set/cat/1.png": ("cat", ""), "set/dog/1.png": ("dog", "")}, []),
        ("class folders", {"set//cat/1.png": ("cat", ""), "set/dog/1.png": ("dog", "")}, []),
        ("class folders", {"a/b/cat/1.png": ("cat", ""), "a/b/dog/x/1.png": ("dog", "")}, []),
        (
            "class folders",
            {"cat/x/1.png": ("cat", ""), "cat/y/z/1.png": ("cat", ""), "dog/1.png": ("dog", "")},
            [],
        ),
        (
            "class folders",
            {"./cat/1.png": ("cat", ""), "dog//1.png": ("dog", ""), "./dog/./2.png": ("dog", "")},
            [],
        ),
        ("class folders", CAT_AND_DOG, ["3.png"]),
        (
            "class folders",
            {"set/cat/1.png": ("cat", ""), "set/dog/1.png": ("dog", "")},
            ["set/3.png"],
        ),
        # without a folder called train, and beside other classes, val and train are classes
        ("class folders", {"val/1.png": ("val", ""), "test/1.png": ("test", "")}, []),
        ("class folders", {"train/1.png": ("train", ""), "plane/1.png": ("plane", "")}, []),
        (
            "split folders",
            {
                "train/cat/1.png": ("cat", "train"),
                "train/dog/1.png": ("dog", "train"),
                "val/cat/1.png": ("cat", "val"),
                "test/dog/1.png": ("dog", "test"),
            },
            [],
        ),
        (
            "split folders",
            {
                "x/Training/cat/1.png": ("cat", "train"),
                "x/Training/dog/1.png": ("dog", "train"),
                "x/VALID/cat/1.png": ("cat", "val"),
                "x/testing/dog/1.png": ("dog", "test"),
            },
            [],
        ),
        (
            "split folders",
            {
                "train/cat/1.png": ("cat", "train"),
                "train/dog/1.png": ("dog", "train"),
                "validation/cat/1.png": ("cat", "val"),
            },
            [],
        ),
        (
            "split folders",
            {"train/cat/1.png": ("cat", "train"), "train/dog/1.png": ("dog", "train")},
            [],
        ),
        (
            "split folders",
            {
                "train/images/cat/1.png": ("cat", "train"),
                "train/images/dog/1.png": ("dog", "train"),
                "test/cat/1.png": ("cat", "test"),
                "test/dog/2.png": ("dog", "test"),
            },
            ["train/3.png"],
        ),
        (
            "split folders",
            {
                "train/cat/1.png": ("cat", "train"),
                "train/dog/1.png": ("dog", "train"),
                "val/dog/1.png": ("dog", "val"),
                "val/cat/1.png": ("cat", "val"),
            },
            ["train/3.png", "extra/cat/1.png", "val/eel/1.png", "2.png"],
        ),
    ],
)
def test_folders(kind: str, wanted: dict[str, tuple[str, str]], lost: list[str]) -> None:
    for names in ([*wanted, *lost], [*lost, *reversed(wanted)]):
        source = Listing(names)
        layout = find_layout(source)
        assert (layout.kind, layout.classes) == (
            kind,
            tuple(sorted({c for c, _ in wanted.values()})),
        )
        assert placed(layout, source) == wanted and layout.num_ignored == 0
        assert sorted(name for name, _ in layout.rejects) == sorted(lost)
        assert {why for _, why in layout.rejects} <= {
            "not in a class folder"
            + (" below train, val or test" if kind == "split folders" else ""),
            "class 'eel' has no training images",
        }


INSIDE = "class folders with splits inside"


@pytest.mark.parametrize(
    "kind, wanted, lost",
    [
        (
            INSIDE,
            {
                "cat/train/1.png": ("cat", "train"),
                "cat/VAL/1.png": ("cat", "val"),
                "dog/train/1.png": ("dog", "train"),
            },
            ["dog/1.png", "dog/x/1.png", "1.png"],
        ),
        (
            INSIDE,
            {"cat/train/1.png": ("cat", "train"), "dog/training/x/1.png": ("dog", "train")},
            [],
        ),
        ("class folders", {"cat/train/1.png": ("cat", ""), "dog/1.png": ("dog", "")}, []),
        ("class folders", {"cat/val/1.png": ("cat", ""), "dog/test/1.png": ("dog", "")}, []),
    ],
)
def test_splits_inside_class_folders(
    kind: str, wanted: dict[str, tuple[str, str]], lost: list[str]
) -> None:
    source = Listing([*lost, *wanted])
    layout = find_layout(source)
    assert layout.kind == kind and placed(layout, source) == wanted
    assert layout.rejects == [
        (n, "not in a folder train, val or test below its class folder") for n in lost
    ]


def test_folders_below_a_class_are_said() -> None:
    layout = find_layout(Listing(["cat/1.png", "dog/x/y/1.png", "dog/z/1.png"]))
    assert "sub-folders of a class folder count as the class: dog/x as dog" in layout.notes


def test_each_of_several_archives_may_have_a_top_folder_of_its_own() -> None:
    one = Listing(["one/cat/1.png", "one/dog/1.png"])
    other = Listing(["cat/2.png", "eel/1.png"])
    deep = Listing(["deep/er/eel/2.png", "deep/er/cat/9.png"])
    source = SeveralSources([one, other, deep])
    layout = find_layout(source)
    assert layout.classes == ("cat", "dog", "eel")
    assert {name: c for name, (c, _) in placed(layout, source).items()} == {
        "one/cat/1.png": "cat",
        "one/dog/1.png": "dog",
        "cat/2.png": "cat",
        "eel/1.png": "eel",
        "deep/er/eel/2.png": "eel",
        "deep/er/cat/9.png": "cat",
    }


def test_classes_are_in_natural_order() -> None:
    layout = find_layout(
        source := Listing(["10/a.png", "9/a.b.png", "x/1.2.3.JPG", "x/png", "9/c.png.txt"])
    )
    assert layout.classes == ("9", "10", "x") and layout.num_ignored == 2
    assert set(placed(layout, source)) == {"10/a.png", "9/a.b.png", "x/1.2.3.JPG"}


def test_what_is_no_image_is_ignored_or_named() -> None:
    names = [
        "cat/",
        "cat/1.JPG",
        "cat/notes.txt",
        "cat/noend",
        "cat/Thumbs.db",
        "cat/.2.png",
        ".git/cat/3.png",
        "__MACOSX/cat/4.png",
        "x/__MACOSX/5.png",
        "dog/more.zip",
        "dog/6.webp",
        "dog/bad.png",
        "dog/7.TAR",
    ]
    layout = find_layout(
        source := Listing(names, {"dog/bad.png": "is encrypted", "cat/notes.txt": "twice"})
    )
    assert set(placed(layout, source)) == {"cat/1.JPG", "dog/6.webp"}
    assert layout.num_ignored == 7
    inside = "an archive inside the archive is not opened"
    assert layout.rejects == [
        ("dog/more.zip", inside),
        ("dog/bad.png", "is encrypted"),
        ("dog/7.TAR", inside),
    ]


@pytest.mark.parametrize(
    "name", ["/cat/1.png", "../1.png", "cat/../../1.png", "C:/cat/1.png", "c:cat.png"]
)
def test_a_name_that_leads_out_of_the_archive_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="leads out of the archive"):
        find_layout(Listing([*CAT_AND_DOG, name]))
    find_layout(Listing([*CAT_AND_DOG, "cat/a..b.png", "cat/..c/1.png", "cat/1:2.png"]))


@pytest.mark.parametrize(
    "names, says",
    [
        ([], "holds no images"),
        (["cat/readme.txt"], "holds no images"),
        (["1.png", "2.png"], "no class folders"),
        (["cat/1.png", "cat/2.png"], "only one class, 'cat'"),
        (["train/cat/1.png", "val/cat/2.png", "val/dog/1.png"], "only one class, 'cat'"),
    ],
)
def test_without_images_or_classes(names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        find_layout(Listing(names))


def test_why_there_are_no_images_is_said() -> None:
    source = Listing(["cat/1.png", "dog/1.zip"], {"cat/1.png": "is encrypted"})
    with pytest.raises(UserError, match=r"2, the first cat/1\.png: is encrypted"):
        find_layout(source)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**30), min_size=2), st.sampled_from(["", "v", "img-", "é "]))
def test_numbers_sort_as_numbers(numbers: list[int], word: str) -> None:
    names = [f"{word}{number}" for number in numbers]
    assert sorted(names, key=natural_key) == [f"{word}{number}" for number in sorted(numbers)]


def test_natural_order() -> None:
    names = ["2", "10", "11b", "a02", "a2", "a3b1", "a3b10", "a10", "b", "²", "٣"]
    assert sorted(reversed(names), key=natural_key) == names


# ── labels.csv
# ──────────────────────────────────────────────────────────────────────────────────────────

IMAGES = ["images/1.png", "images/2.png", "images/3.jpg", "images/more/1.png"]


def labelled(
    text: str | bytes, where: str = "labels.csv", images: list[str] = IMAGES
) -> tuple[Layout, dict[str, str]]:
    content = text.encode() if isinstance(text, str) else text
    source = Listing(dict.fromkeys(images, b"") | {where: content})
    layout = find_layout(source)
    assert layout.kind == "labels.csv" and (layout.splits == -1).all()
    return layout, {name: c for name, (c, _) in placed(layout, source).items()}


@pytest.mark.parametrize(
    "text",
    [
        "images/1.png,cat\nimages/2.png,dog\n",
        "file,label\r\nimages/1.png,cat\r\nimages/2.png,dog",
        "\ufeffimages/1.png;cat\n2.png;dog\n",
        "images/1\tcat\n 2 \t dog \n",
        "images\\1.png,cat\n./images/2.png,dog,more\n\n",
        '"images/1.png","cat"\n2,dog\nimages/2.png,dog\n',
        "X,Y\nimages/1.png,cat\nimages/2,dog\n",
    ],
)
def test_a_labels_file_names_images_by_path_or_by_a_base_name_that_is_unique(text: str) -> None:
    layout, classes = labelled(text)
    assert classes == {"images/1.png": "cat", "images/2.png": "dog"} and layout.num_ignored == 0
    assert [(n, why) for n, why in layout.rejects if "not listed" in why] == [
        ("images/3.jpg", "not listed in labels.csv"),
        ("images/more/1.png", "not listed in labels.csv"),
    ]


def test_what_a_labels_file_names_wrongly_is_listed() -> None:
    text = (
        "images/1.png,cat\nimages/1.png,cat\n2,dog\n2,cat\n9.png,cat\n1.png,cat\n3.jpg,\n"
        "images/more/1.png,cat 2\nonly-a-name\n"
    )
    layout, classes = labelled(text)
    assert classes == {"images/1.png": "cat", "images/more/1.png": "cat 2"}
    assert layout.classes == ("cat", "cat 2") and layout.labels.tolist() == [0, 1]
    assert layout.rejects == [
        ("2", "listed twice in labels.csv, as 'dog' and as 'cat'"),
        ("9.png", "listed in labels.csv, but not in the archive"),
        ("1.png", "listed in labels.csv, but several images have that name"),
        ("3.jpg", "has no class in labels.csv"),
        ("only-a-name", "listed in labels.csv, but not in the archive"),
        ("images/3.jpg", "not listed in labels.csv"),
    ]


def test_only_a_first_line_that_names_no_image_is_one_of_headings() -> None:
    layout, classes = labelled("images/1.png,boX\n9.png,dog\nimages/2.png,dog\n")
    assert classes == {"images/1.png": "boX", "images/2.png": "dog"}
    assert layout.rejects[0] == ("9.png", "listed in labels.csv, but not in the archive")


def test_names_without_suffix_end_before_the_last_point() -> None:
    images = ["set/more/a.b.png", "set/more/a.c.png", "set/d.e.f.png"]
    text = "more/a.b,cat\na.c,dog\nd.e.f,eel\n"
    assert labelled(text, "set/labels.csv", images)[1] == dict(
        zip(images, ["cat", "dog", "eel"], strict=True)
    )
    # what is called alike is found by its path alone
    images = ["set/a/1.png", "set/b/1.png", "set/2.jpg"]
    text = "a/1,cat\nb/1.png,dog\n1,eel\n2,gnu\n"
    assert labelled(text, "set/labels.csv", images)[1] == dict(
        zip(images, ["cat", "dog", "gnu"], strict=True)
    )


def test_of_several_labels_files_the_uppermost_counts_and_names_lie_below_it() -> None:
    images = ["top/set/1.png", "top/set/2.png", "top/set/more/3.png", "4.png"]
    files = dict.fromkeys(images, b"") | {
        "top/set/more/labels.csv": b"3.png,eel\n",
        "top/set/Labels.CSV": b"1.png,cat\n2,dog\nmore/3.png,cat\n",
        "top/all/labels.csv": b"1.png,gnu\n",
    }
    layout = find_layout(source := Listing(files))
    assert {name: c for name, (c, _) in placed(layout, source).items()} == dict(
        zip(images[:3], ["cat", "dog", "cat"], strict=True)
    )
    assert layout.num_ignored == 2 and layout.rejects == [
        ("4.png", "not listed in top/set/Labels.CSV")
    ]


@pytest.mark.parametrize(
    "text, says",
    [
        (b"9.png,cat\n8.png,dog\n", "names none of its 4 images"),
        (b"", "names none of its 4 images"),
        (b"images/1.png,cat\nimages/2.png,cat\n", "only one class, 'cat'"),
        (b"images/1.png,\xff\n", "is not UTF-8. .* save it as 'CSV UTF-8'"),
        (b"images/1.png,cat\nimages/2.png,dog" + b"x" * 200_000, "cannot be read"),
    ],
)
def test_wrong_labels_files(text: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        labelled(text)


def test_a_labels_file_that_cannot_be_had() -> None:
    source = Listing([*IMAGES, "labels.csv"], {"labels.csv": "is encrypted"})
    with pytest.raises(UserError, match=r"cannot be read \(is encrypted"):
        find_layout(source)


def test_split_folders_count_where_the_table_says_none() -> None:
    images = ["train/1.png", "train/2.png", "TEST/3.png", "extra/4.png", "5.png"]
    text = "1,cat\n2,dog\n3,cat\n4,cat\n5,dog\n"
    source = Listing(dict.fromkeys(images, b"") | {"labels.csv": text.encode()})
    layout = find_layout(source)
    assert placed(layout, source) == {
        "train/1.png": ("cat", "train"),
        "train/2.png": ("dog", "train"),
        "TEST/3.png": ("cat", "test"),
    }
    why = "not in a folder train, val or test, as others are"
    assert layout.rejects == [("extra/4.png", why), ("5.png", why)]


def test_folders_called_val_and_test_without_train_are_no_splits_of_a_table() -> None:
    _, classes = labelled("1,cat\n2,dog\n", images=["val/1.png", "test/2.png"])
    assert classes == {"val/1.png": "cat", "test/2.png": "dog"}


def test_one_hot_columns_may_be_words() -> None:
    _, classes = labelled(
        "image,cat,dog\nimages/1.png,TRUE,false\nimages/2.png,False,true\n3.jpg,1,0.0\n"
    )
    assert classes == {"images/1.png": "cat", "images/2.png": "dog", "images/3.jpg": "cat"}


def test_the_line_of_headings_tells_the_delimiter_and_the_columns() -> None:
    layout, classes = labelled(
        "copy;label;File- Name\n2;a, b, c;images/1.png\nimages/1.png;d, e, f;2\n"
    )
    assert classes == {"images/1.png": "a, b, c", "images/2.png": "d, e, f"}
    assert (
        "took column 3 'File- Name' as file, 2 'label' as class; not used: 1 'copy'"
        in layout.notes[0]
    )


def test_a_row_that_ends_early_has_no_class() -> None:
    layout, classes = labelled("images/1.png,cat\n2,dog\nimages/3.jpg\n")
    assert set(classes) == {"images/1.png", "images/2.png"}
    assert ("images/3.jpg", "has no class in labels.csv") in layout.rejects


@pytest.mark.parametrize(
    "splits, said",
    [
        (["train", "val", "test"], "train 2, val 2, test 2"),
        (["train", "test"], "train 2, test 2; val drawn from train"),
        (["train"], "train 2; val and test drawn from train"),
    ],
)
def test_the_splits_of_the_archive_are_said(splits: list[str], said: str) -> None:
    layout = find_layout(
        Listing([f"{split}/{c}/1.png" for split in splits for c in ("cat", "dog")])
    )
    assert layout.notes == [f"splits as the archive says: {said}"]


@pytest.mark.parametrize(
    "tables, said",
    [
        (["b.csv", "Train.TSV", "c.d.jsonl"], "b.csv, Train.TSV, c.d.jsonl"),
        (["b.csv", "a.csv", "c.csv", "d.csv", "e.xlsx"], "b.csv, a.csv, c.csv and 2 more"),
    ],
)
def test_tables_that_are_not_read_are_named(tables: list[str], said: str) -> None:
    layout = find_layout(Listing([*CAT_AND_DOG, *tables, "notes.txt"]))
    assert layout.notes == [f"not used: {said} (--labels FILE takes classes from a table)"]


def test_flat_images_beside_a_text_are_told_of_it_but_not_of_a_readme() -> None:
    with pytest.raises(UserError) as error:
        find_layout(
            Listing(["1.png", "README.txt", "License.txt", "readme.TXT", "list.txt", "notes.md"])
        )
    assert "Tables that it holds: list.txt (names none of its 1 images)." in str(error.value)
    assert "no class folders" in str(error.value)


@pytest.mark.timeout(15)
def test_many_texts_take_time_in_proportion() -> None:
    """Boxes of detection, a text for each image: each with each they took half a minute."""
    texts = [f"labels/{i}.txt" for i in range(60_000)]
    with pytest.raises(UserError, match="59,968 texts and tables that were not looked into"):
        find_layout(Listing([*texts, "images/1.png", "images/2.png"]))


def test_several_tables_apart_from_the_images_are_refused() -> None:
    parts = [Listing(CAT_AND_DOG), Listing({"x/labels.csv": b""}), Listing({"labels.tsv": b""})]
    with pytest.raises(
        UserError, match=r"several labels files: x/labels\.csv, labels\.tsv\. Say which"
    ):
        find_layout(SeveralSources(parts))


def test_what_each_of_several_archives_gives_is_said() -> None:
    one = Listing(["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"])
    one.label = "one.zip"
    layout = find_layout(
        SeveralSources([one, Listing(["cat/2.png", "dog/2.png"]), Listing(["readme.txt"])])
    )
    assert layout.notes[:3] == [
        "one.zip: split folders, 3 images",
        "a.zip: class folders, 2 images, without splits: all go to training",
        "a.zip: nothing that can be used, 0 images",
    ]
    assert layout.kind == "split folders + class folders"
