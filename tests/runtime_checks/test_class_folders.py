"""Which class a folder stands for, and the refusals where nobody can tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdfq_export.runtime_checks.class_folders import class_indices, read_labels
from gdfq_export.runtime_checks.errors import CheckError


@pytest.mark.parametrize(
    ("names", "classes", "indices"),
    [
        (["ant", "bee", "cat"], 3, [0, 1, 2]),
        (["0002_n01484850", "0010_n0153"], 1000, [2, 10]),
        (["1", "10", "2"], 11, [1, 10, 2]),
        (["1_a", "2nd", "3_c"], 3, [0, 1, 2]),
        (["n01440764", "n01443537"], 2, [0, 1]),
    ],
)
def test_the_class_is_the_leading_number_when_all_have_one_and_else_the_position(
    names: list[str], classes: int, indices: list[int]
) -> None:
    assert class_indices(names, classes) == indices


@pytest.mark.parametrize("names", [["ant", "bee"], ["ant", "bee", "cat", "dog"], ["0", "1", "other", "2"]])
def test_one_folder_more_or_less_than_classes_is_refused_with_a_way_to_name_them(names: list[str]) -> None:
    with pytest.raises(CheckError, match=rf"{len(names)} folders for 3 classes.*0_cat, 7_dog.*--labels FILE"):
        class_indices(names, 3)


def test_a_number_beyond_the_classes_is_refused() -> None:
    with pytest.raises(CheckError, match="the folder '3' is class 3, but this model has the classes 0 to 2"):
        class_indices(["1", "2", "3"], 3)


def test_two_folders_of_the_same_number_are_refused() -> None:
    with pytest.raises(CheckError, match="the folders '01_cat' and '1_dog' are both class 1"):
        class_indices(["01_cat", "1_dog"], 3)


def test_labels_tell_the_class_of_a_folder_of_that_name() -> None:
    assert class_indices(["ant", "cat"], 3, ("cat", "bee", "ant")) == [2, 0]
    assert class_indices(["1", "2"], 3, ("1", "2", "3")) == [0, 1]  # names, not numbers


def test_numbers_still_count_where_no_label_is_one() -> None:
    assert class_indices(["0", "2"], 3, ("zero", "one", "two")) == [0, 2]


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["ant", "dog"], ("cat", "bee", "ant"), "the folder 'dog' is none of the 3 labels .*rename it"),
        (["0", "ant"], ("cat", "bee", "ant"), "the folder '0' is none of the 3 labels"),
        (["0"], ("1", "2", "3"), "the folder '0' is none of the 3 labels"),
        (["crane"], ("crane", "heron", "crane"), "the folder 'crane' is 2 of the 3 labels"),
        (["ant"], ("ant", "bee"), "2 labels for 3 classes"),
    ],
)
def test_labels_that_do_not_tell_a_folder_are_refused(names: list[str], labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(CheckError, match=message):
        class_indices(names, 3, labels)


def test_labels_are_read_a_line_a_class(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffgreat white shark\r\nB\u00e4r \r\n\n".encode())
    assert read_labels(path) == ("great white shark", "B\u00e4r")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no labels in it"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\nb\na\n", "lines 1 and 3 are both 'a'"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_list_of_labels_is_one_sentence(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckError, match=message):
        read_labels(path)
