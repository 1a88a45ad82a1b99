import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from cm3jax.errors import UserError
from cm3jax.io import folders
from cm3jax.io.folders import (
    delete,
    hold,
    read_whole,
    require_ours,
    require_scratch,
    scratch,
    settle,
    swap,
    sweep,
)

HOLDER = """
import sys, time
from cm3jax.io.folders import hold
with hold(sys.argv[1], "training tiny"):
    print("held", flush=True)
    time.sleep(60)
"""


def recognised(folder):
    """A folder of ours has a list of its files."""
    try:
        return [*json.loads((folder / "list.json").read_text()), "list.json"]
    except (OSError, ValueError):
        return None


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "list.json").write_text(json.dumps(list(files)))
    return folder


def tree(folder):
    """Every file's text."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def holder():
    """Starts another process that holds a folder."""
    started = []

    def start(folder):
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


# -------------------------------------------------------------------------------------- one writer


def test_a_lock_that_finds_no_room_is_told_with_its_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match=r"\.run\.lock"), hold(tmp_path / "run", "writing"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    with hold(tmp_path / "run", "writing"):
        assert (tmp_path / ".run.lock").exists()


def test_a_second_writer_is_told_of_the_first_and_a_dead_one_does_not_block(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    first = holder(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "link", f"{tmp_path}/x/../run"):
        with pytest.raises(UserError) as refused, hold(path, "something"):
            pass
        said = str(refused.value)
        assert f"training tiny (process {first.pid} on {os.uname().nodename}, since 20" in said
        assert said.count(". ") == 0
    with hold(tmp_path / "other", "something"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with hold(tmp_path / "run", "something"):
        assert "something" in (tmp_path / ".run.lock").read_text()
    assert os.listdir(tmp_path) == ["link"]


def test_a_thread_may_hold_again_what_it_holds_and_another_may_not(tmp_path):
    refused = []

    def other():
        try:
            with hold(tmp_path / "run", "other"):
                pass
        except UserError as error:
            refused.append(str(error))

    with hold(tmp_path / "run", "outer"):
        with hold(tmp_path / "run", "inner"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"outer (process {os.getpid()}" in refused[0]
    other()
    assert len(refused) == 1


def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "from cm3jax.io.folders import hold\n"
        "with hold(sys.argv[1], 'parent'):\n"
        "    up, tell = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(tell, b'!')\n"
        "        time.sleep(30)\n"
        "        os._exit(0)\n"
        "    os.read(up, 1)\n"
        "    print(child, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    env = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        child = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        try:
            with hold(tmp_path / "run", "something"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_was_removed_and_made_again_is_not_held_by_its_old_file(tmp_path, monkeypatch):
    """One waits at a file whose holder removes it, while a third makes another."""
    path, original = tmp_path / ".run.lock", folders._try_flock

    def replaced_first(*about):
        monkeypatch.setattr(folders, "_try_flock", original)
        path.unlink()
        path.touch()
        return original(*about)

    monkeypatch.setattr(folders, "_try_flock", replaced_first)
    refused = []

    def other():
        try:
            with hold(tmp_path / "run", "other"):
                pass
        except UserError as error:
            refused.append(str(error))

    with hold(tmp_path / "run", "something"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "something" in refused[0]


@pytest.mark.parametrize("content", ["a thesis", "[" * 100_000])
def test_a_file_that_is_not_a_lock_is_left_alone(tmp_path, content):
    (tmp_path / ".run.lock").write_text(content)
    with pytest.raises(UserError, match="but is another file"), hold(tmp_path / "run", "x"):
        pass
    assert (tmp_path / ".run.lock").read_text() == content


@pytest.fixture
def shared():
    """A folder where every user may write, while this process is no superuser."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        before = os.geteuid()
        try:
            if before == 0:
                os.seteuid(65534)
            yield Path(name)
        finally:
            os.seteuid(before)


def test_a_lock_that_another_user_left_does_not_block(shared):
    """By a usual umask nobody else may write into it."""
    about = '{"pid": 1, "host": "h", "what": "training", "since": "2026-01-01"}'
    for content in (about, ""):
        (shared / ".run.lock").write_text(content)
        (shared / ".run.lock").chmod(0o444)
        with hold(shared / "run", "something"):
            assert "something" in (shared / ".run.lock").read_text()
    (shared / ".run.lock").write_text("a thesis")
    (shared / ".run.lock").chmod(0o444)
    with pytest.raises(UserError, match="but is another file"), hold(shared / "run", "x"):
        pass
    assert (shared / ".run.lock").read_text() == "a thesis"


def test_a_lock_that_cannot_be_taken_away_is_let_go(shared):
    """As another user's in a folder for temporary files, where only its owner may delete it."""
    lock, folder = shared / "here/.run.lock", shared / "here"
    folder.mkdir()
    lock.write_text('{"pid": 1, "host": "h", "what": "training", "since": "2026-01-01"}')
    lock.chmod(0o444)
    folder.chmod(0o555)
    with pytest.raises(UserError, match="cannot be written"), hold(folder / "run", "x"):
        pass
    folder.chmod(0o755)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_where_there_are_no_locks_another_user_s_file_stays(shared, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold(shared / "run", "something"):
        pass
    (shared / ".run.lock").write_text('{"pid": 1, "host": "h", "what": "a run", "since": "now"}')
    (shared / ".run.lock").chmod(0o444)
    with pytest.raises(UserError, match="cannot be written"), hold(shared / "run", "x"):
        pass
    assert (shared / ".run.lock").exists()


def test_a_lock_that_another_user_holds_is_told(shared):
    begun, over = threading.Event(), threading.Event()

    def other():
        with hold(shared / "run", "training tiny"):
            (shared / ".run.lock").chmod(0o444)
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    try:
        with pytest.raises(UserError, match="in use: training tiny"), hold(shared / "run", "x"):
            pass
    finally:
        over.set()
        thread.join()
    assert not os.listdir(shared)


def test_a_place_where_nothing_can_be_written_raises_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), hold(tmp_path / "file/run", "x"):
        pass


# --------------------------------------------------------------------------------------- ownership


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    require_ours(tmp_path / "missing", recognised, "a bank")
    (tmp_path / "empty").mkdir()
    require_ours(tmp_path / "empty", recognised, "a bank")
    require_ours(write(tmp_path / "ours", a="1"), recognised, "a bank")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    with pytest.raises(UserError, match="does not hold a bank; nothing was changed"):
        require_ours(tmp_path / "theirs", recognised, "a bank")
    with pytest.raises(UserError, match="is a file"):
        require_ours(tmp_path / "theirs/thesis.tex", recognised, "a bank")


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_stands_where_the_next_version_is_written_is_refused(tmp_path, what):
    folder, aside = tmp_path / "a", tmp_path / ".a.new"
    require_scratch(folder, recognised)
    aside.mkdir()
    require_scratch(folder, recognised)
    aside.rmdir()
    write(aside, a="1")
    require_scratch(folder, recognised)
    aside.rename(tmp_path / "ours")
    match what:
        case "folder":
            aside.mkdir()
            (aside / "thesis.tex").write_text("words")
        case "file":
            aside.write_text("words")
        case "link":  # ours is never one
            aside.symlink_to(tmp_path / "ours")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"\.a\.new is none of this program's.*Move it away"):
        require_scratch(folder, recognised)
    assert tree(tmp_path) == before


def test_only_our_files_are_deleted(tmp_path):
    (tmp_path / "thesis").write_text("words")
    folder = write(tmp_path / "ours", a="1")
    names = ["a", "../thesis", str(tmp_path / "thesis"), ""]
    (folder / "list.json").write_text(json.dumps(names))
    (folder / "notes").write_text("mine")
    delete(folder, recognised)
    assert tree(tmp_path) == {"thesis": "words", "ours/notes": "mine"}


# ------------------------------------------------------------------------------------------- swaps


class Killed(BaseException):
    pass


def killed_swap(tmp_path, monkeypatch, at):
    """A swap that ends before the change of number `at` to the disk; whether it came so far."""
    folder = write(tmp_path / "bank", a="old", b="old")
    (folder / "sub").mkdir()
    (folder / "sub" / "mine").write_text("mine")
    complete = write(scratch(folder, "parts"), a="new", c="new")
    (tmp_path / ".bank.notes").write_text("mine")
    count = 0

    def counted(original):
        def change(*args, **kwargs):
            nonlocal count
            count += 1
            if count > at:
                raise Killed
            return original(*args, **kwargs)

        return change

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            path = type(folders.epath.Path(tmp_path))
            patch.setattr(path, name, counted(getattr(path, name)))
        try:
            swap(complete, folder, recognised)
        except Killed:
            return folder, True
    return folder, False


@pytest.mark.parametrize("at", range(12))
def test_a_swap_killed_anywhere_is_finished_when_the_folder_is_opened(tmp_path, monkeypatch, at):
    folder, killed = killed_swap(tmp_path, monkeypatch, at)
    assert killed == (at < 9), "every change to the disk is tried"
    settle(folder, recognised)
    left = tree(tmp_path)
    assert left.pop(".bank.notes") == "mine"
    assert left.pop("bank/sub/mine") == "mine"
    if at == 0:
        assert left.pop(".bank.parts/list.json")
        assert left == {
            **{".bank.parts/a": "new", ".bank.parts/c": "new", "bank/list.json": '["a", "b"]'},
            **{"bank/a": "old", "bank/b": "old"},
        }
    else:
        assert left == {"bank/a": "new", "bank/c": "new", "bank/list.json": '["a", "c"]'}
        assert sorted(os.listdir(tmp_path)) == [".bank.notes", "bank"]


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    """Twice, so that the number of the folder that was opened might be that of the last one."""
    folder, seen = write(tmp_path / "bank", a="0", b="0"), []

    def read():
        first = (folder / "a").read_text()
        if not seen:
            for text in "12":
                swap(write(scratch(folder, "parts"), a=text, b=text), folder, recognised)
        seen.append(first)
        return first, (folder / "b").read_text()

    assert read_whole(folder, recognised, read) == ("2", "2")
    assert seen == ["0", "2"]


def test_a_folder_that_is_moved_aside_while_it_is_opened_is_read_again(tmp_path, monkeypatch):
    folder = write(tmp_path / "bank", a="0")

    def replaced_first(path, flags, *rest):
        monkeypatch.undo()
        swap(write(scratch(folder, "parts"), a="1"), folder, recognised)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("cm3jax.io.unchanged.os.open", replaced_first)
    assert read_whole(folder, recognised, (folder / "a").read_text) == "1"


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    write(tmp_path / "disk" / "v1", a="old")
    (tmp_path / "bank").symlink_to(tmp_path / "disk" / "v1")
    swap(write(scratch(tmp_path / "bank", "parts"), a="new"), tmp_path / "bank", recognised)
    assert (tmp_path / "bank").is_symlink()
    assert (tmp_path / "bank" / "a").read_text() == "new"
    assert os.listdir(tmp_path / "disk") == ["v1"]


def test_a_stranger_s_file_is_renamed_and_kept(tmp_path):
    folder = write(tmp_path / "bank", a="old")
    (folder / "c").write_text("mine")
    swap(write(scratch(folder, "parts"), c="new"), folder, recognised)
    assert tree(folder) == {"c": "new", "c.1": "mine", "list.json": '["c"]'}


@pytest.mark.parametrize("name", ["bank", ".bank.new", ".bank.old"])
def test_a_stranger_s_folder_in_the_way_is_left_alone(tmp_path, name):
    complete = write(scratch(tmp_path / "bank", "parts"), a="new")
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis").write_text("words")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="nothing was changed"):
        swap(complete, tmp_path / "bank", recognised)
    settle(tmp_path / "bank", recognised)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [".bank.new", ".bank.old", ".bank.part"])
def test_a_link_in_the_way_is_none_of_ours_whatever_it_leads_to(tmp_path, name):
    folder, other = write(tmp_path / "bank", a="1"), write(tmp_path / "other", a="2")
    (tmp_path / name).symlink_to(other)
    before = tree(tmp_path)
    settle(folder, recognised)
    sweep(folder, recognised, "part")
    assert tree(tmp_path) == before
    assert folder.is_dir()
    assert not folder.is_symlink()


@pytest.mark.parametrize("what", ["folder", "link to nothing", "link to a file"])
def test_what_is_no_file_in_a_lock_s_place_stays_and_is_told(tmp_path, what):
    lock, file = tmp_path / ".bank.lock", tmp_path / "mine"
    match what:
        case "folder":
            lock.mkdir()
        case "link to nothing":
            lock.symlink_to(file)
        case "link to a file":
            file.touch()
            lock.symlink_to(file)
    before = tree(tmp_path), sorted(os.listdir(tmp_path))
    with (
        pytest.raises(UserError, match=r"\.lock would be .* is a folder or a link; move it away"),
        hold(tmp_path / "bank", "training tiny"),
    ):
        pass
    assert (tree(tmp_path), sorted(os.listdir(tmp_path))) == before


def test_scraps_of_dead_writers_are_swept_and_nothing_else(tmp_path):
    folder = write(tmp_path / "bank", a="1")
    write(tmp_path / ".bank.77.part", a="2")
    write(tmp_path / ".bank.7x.part", a="3")
    (tmp_path / ".bank.78.part").mkdir()
    (tmp_path / ".bank.78.part" / "thesis").write_text("words")
    sweep(folder, recognised, r"\d+\.part")
    assert sorted(os.listdir(tmp_path)) == [".bank.78.part", ".bank.7x.part", "bank"]
    assert (tmp_path / ".bank.78.part" / "thesis").read_text() == "words"


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", "sub"])
def test_a_list_with_a_name_that_no_file_of_ours_has_stops_no_swap(tmp_path, name):
    folder = write(tmp_path / "bank", a="old")
    (folder / "list.json").write_text(json.dumps(["a", name]))
    (folder / "sub").mkdir()
    (folder / "sub" / "thesis").write_text("mine")
    swap(write(tmp_path / "next", a="new"), folder, recognised)
    settle(folder, recognised)
    assert tree(tmp_path) == {
        "bank/a": "new",
        "bank/list.json": '["a"]',
        "bank/sub/thesis": "mine",
    }
