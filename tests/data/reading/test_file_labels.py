"""A file's class: from a CSV, from folders with safe names, or none."""

from __future__ import annotations

import pytest

from medpfl.core.errors import InputError
from medpfl.data.reading.file_labels import UNLABELED, Place, label_files

PLACES = [
    Place("x/1.dcm", "ann", "1.1", "1.1.1"),
    Place("x/2.dcm", "bob", "1.2", "1.2.1"),
    Place("y/3.dcm", "ann", "1.3", "1.3.1"),
    Place("y/4.dcm", "eve", "1.4", "1.4.1"),
]


def table(tmp_path, text, name="labels.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,label\nx/1.dcm,sick\n./x/2.dcm,well\ny/3.dcm,well\ny/4.dcm,sick\n", [0, 1, 1, 0]),
        ("label,patient_id\nsick,ann\nwell,bob\nwell,eve\nwell,nobody\n", [0, 1, 0, 1]),
        ("study_uid,class\n1.1,a\n1.2,b\n1.3,c\n1.4,a\n", [0, 1, 2, 0]),
        ("series_uid,study_uid,class\n1.1.1,,a\n1.2.1,,b\n1.3.1,,b\n1.4.1,,a\n", [0, 1, 1, 0]),
    ],
    ids=["file", "patient", "study", "series"],
)
def test_a_table(tmp_path, text, expected):
    labels, classes = label_files(PLACES, tmp_path, table(tmp_path, text))
    assert labels == expected
    assert list(classes) == sorted(classes)


def test_index_csv_is_found_and_may_name_other_files(tmp_path):
    table(tmp_path, "file,class\nx/1.dcm,a\nx/2.dcm,b\ny/3.dcm,b\ny/4.dcm,a\ngone.dcm,c\n", "index.csv")
    assert label_files(PLACES, tmp_path, None) == ([0, 1, 1, 0], ("a", "b"))


def test_an_index_of_patients_only_has_no_labels(tmp_path):
    table(tmp_path, "file,patient_id\nx/1.dcm,a\n", "index.csv")
    assert label_files(PLACES, tmp_path, None) == ([0, 0, 1, 1], ("x", "y"))


def test_folders_are_classes_if_each_holds_several_patients(tmp_path):
    assert label_files(PLACES, tmp_path, None) == ([0, 0, 1, 1], ("x", "y"))
    assert label_files([*PLACES, Place("ann/5.dcm", "ann")], tmp_path, None) == ([0] * 5, UNLABELED)
    assert label_files([*PLACES, Place("5.dcm", "zoe")], tmp_path, None) == ([0] * 5, UNLABELED)
    assert label_files(PLACES[:2], tmp_path, None) == ([0] * 2, UNLABELED)
    assert label_files([*PLACES, Place("ann/5.dcm", "ann")], tmp_path, "folders")[1] == ("ann", "x", "y")


def refused(places, root, labels):
    with pytest.raises(InputError) as caught:
        label_files(places, root, labels)
    return str(caught.value)


def test_loose_files_are_in_no_class(tmp_path):
    message = refused([*PLACES, Place("5.dcm", "zoe")], tmp_path, "folders")
    assert "1 file(s) lie directly in" in message
    assert "5.dcm" in message


def test_a_table_that_lacks_files_or_names_others(tmp_path):
    some = table(tmp_path, "file,label\nx/1.dcm,a\nx/2.dcm,b\ny/4.dcm,\n")
    assert "has no label for 2 file(s):\n  y/3.dcm\n  y/4.dcm\nadd a row for each" in refused(PLACES, tmp_path, some)
    more = table(tmp_path, "file,label\n" + "".join(f"{p.file},a\n" for p in PLACES) + "gone.dcm,b\ndamaged.dcm,b\n")
    (tmp_path / "damaged.dcm").touch()
    assert "lists 1 missing file(s):\n  gone.dcm" in refused(PLACES, tmp_path, more)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;label\nx;y\n", "has the columns file;label"),
        ("name,label\nx,y\n", "has the columns name, label"),
        ("file,diagnosis\nx,y\n", "a column 'label'"),
        ("", r"has the columns \(none\)"),
        ("patient_id,label\nann,a\nann,b\n", "gives two labels, 'a' and 'b', to one patient_id"),
    ],
)
def test_malformed_tables(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        label_files(PLACES, tmp_path, table(tmp_path, text))


def test_no_such_table(tmp_path):
    assert "cannot read" in refused(PLACES, tmp_path, str(tmp_path / "none.csv"))
    (tmp_path / "bad.csv").write_bytes(b"file,label\n\xff,a\n")
    assert "UTF-8" in refused(PLACES, tmp_path, str(tmp_path / "bad.csv"))
