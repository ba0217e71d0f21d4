"""Files that people name: what is none is told at once, and what the system says is a sentence."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from odd_files import MAKE

from autocompress.errors import AutocompressError, InputError
from autocompress.policy.files import LARGEST_FILE, as_ours, check_output, kind, read_lines
from autocompress.policy.reading import read_mapping
from autocompress.policy.recipe import Recipe
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.writing import replacing
from autocompress.run.study import load_study

READERS: dict[str, Callable[[Path], object]] = {
    "study": load_study,
    "recipe": Recipe.load,
    "search space": SpaceConfig.load,
    "policy": lambda path: read_mapping(path, "policy"),
}


def lines_of(path: Path) -> list[bytes]:
    return [line for _, line in read_lines(path, "journal", "Remove it.")]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", [*MAKE, "device"])
def test_a_file_that_is_none_is_told_by_its_kind(tmp_path: Path, reader: str, what: str) -> None:
    path = tmp_path / "x.yaml"
    MAKE.get(what, lambda path: path.symlink_to("/dev/zero"))(path)
    with pytest.raises(InputError, match=f"x.yaml is a {what}, and a {reader} is a plain file"):
        READERS[reader](path)


@pytest.mark.parametrize("what", MAKE)
def test_nothing_takes_the_place_of_what_is_no_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.yaml"
    MAKE[what](path)
    with pytest.raises(InputError, match=f"x.yaml is a {what}"), replacing(path):
        pytest.fail("it is told before anything is written")
    assert kind(path) == what
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["/dev/full", "/dev/stdout", "/dev/fd/1", "/dev/new", "/proc/x"])
def test_a_device_stays_a_device(path: str) -> None:
    with pytest.raises(InputError, match=f"{path} is a device"):
        check_output(path)


@pytest.mark.parametrize("above", ["file", "link"])
def test_a_file_is_no_folder(tmp_path: Path, above: str) -> None:
    if above == "file":
        (tmp_path / "x").touch()
    else:
        (tmp_path / "x").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"/x is no folder\. Give another path"):
        check_output(tmp_path / "x" / "y" / "z.onnx")
    check_output(tmp_path / "new" / "y" / "z.onnx")


def test_lines_are_whole_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n\nb\nc")
    assert lines_of(path) == [b"a\n", b"\n", b"b\n"]


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("fill", [b"\0", b" "])
def test_a_line_without_an_end_is_told_before_it_is_read(
    tmp_path: Path, end: bytes, fill: bytes
) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(b"a\n" + fill * LARGEST_FILE)
        file.truncate(10**9)
        file.seek(0, os.SEEK_END)
        file.write(end)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"x, line 2, is longer than 16 MB.*Remove it\."):
            lines_of(path)
        assert tracemalloc.get_traced_memory()[1] < 5 * LARGEST_FILE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_what_the_system_says_of_a_file_is_a_sentence(number: int) -> None:
    told = as_ours(OSError(number, os.strerror(number), "some/file"))
    assert told is not None
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    assert told.exit_code == (1 if full else 2)
    assert str(told).startswith(f"some/file: {os.strerror(number)}. ")
    assert "another path" in str(told)
    bare = as_ours(OSError(number, os.strerror(number)))
    assert (bare is not None) == full


@pytest.mark.parametrize(
    "error",
    [
        OSError("no number"),
        OSError(errno.EBADF, "x", 7),
        ValueError("x"),
        KeyError("x"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "x"),
    ],
)
def test_a_bug_stays_a_bug(error: Exception) -> None:
    assert as_ours(error) is None


def test_what_a_users_code_raises_is_not_taken_for_ours(tmp_path: Path) -> None:
    def of_the_users() -> None:
        (tmp_path / "absent").read_text()

    def caught(call: Callable[[], object]) -> OSError:
        with pytest.raises(OSError) as found:
            call()
        # this test's own code is a user's too
        below = found.tb.tb_next
        return found.value.with_traceback(below)

    assert as_ours(caught(of_the_users)) is None
    assert as_ours(caught(partial((tmp_path / "absent").read_text))) is not None
    assert as_ours(caught(partial(check_output, "x" * 10_000))) is not None
    error = AutocompressError("x")
    assert as_ours(error) is error


def test_a_name_of_ten_thousand_letters_is_cut() -> None:
    told = as_ours(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 10_000))
    assert told is not None
    assert len(str(told)) < 300


def test_a_recipe_is_written_through_a_link_or_not_at_all(tmp_path: Path) -> None:
    recipe = Recipe.load(
        Path(__file__).parent.parent / "fixtures" / "run_0_1" / "run" / "recipes" / "best.yaml"
    )
    (tmp_path / "link.yaml").symlink_to("file.yaml")
    recipe.save(tmp_path / "link.yaml")
    assert (tmp_path / "link.yaml").is_symlink()
    assert Recipe.load(tmp_path / "file.yaml").policy == recipe.policy
    (tmp_path / "device.yaml").symlink_to("/dev/full")
    with pytest.raises(InputError, match="/dev/full is a device"):
        recipe.save(tmp_path / "device.yaml")


def test_a_study_is_told_from_a_recipe(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text("model: {factory: a:b}\nrecovery: {schedule: {lr: 0.1}}\nspace: auto\n")
    with pytest.raises(InputError, match=r"is a study, not a recipe\. `autocompress export"):
        Recipe.load(study)
