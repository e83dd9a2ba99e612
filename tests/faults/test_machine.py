"""What the machine does to a run: full disks, signals, lost loaders, folders in use."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from harness import Run

from mlm.training.checkpoint_io import latest_checkpoint
from mlm.training.guards import explain


def in_a_file_system(command: list[str], mount: str, megabytes: int) -> subprocess.CompletedProcess:
    """Run ``command`` where ``mount`` is a file system of a few megabytes of its own."""
    script = f'mount -t tmpfs -o size={megabytes}m tmpfs {mount} && exec "$@"'
    unshare = ["unshare", "-Urm", "sh", "-c", script, "sh"]
    return subprocess.run([*unshare, *command], capture_output=True, text=True, timeout=120)


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode == 0


mounts = pytest.mark.skipif(not can_mount(), reason="user namespaces are not allowed here")


def mlm(run: Run) -> list[str]:
    return [sys.executable, "-m", "mlm", *run.argv]


@mounts
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(rows, tmp_path):
    run = Run(rows, tmp_path / "disk", "--budget 400steps --checkpoint.keep 100")
    look = "ls -A $0; ls -A $0/checkpoints; df --output=avail -k $0 | tail -1"
    both = f"{' '.join(mlm(run))}; echo \"ended $?\"; sh -c '{look}' {run.run_dir}"
    run.run_dir.mkdir()
    done = in_a_file_system(["sh", "-c", both], str(run.run_dir), megabytes=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("mlm:")]
    assert "the disk is full" in errors[-1]
    assert errors[-1].endswith("go on with the same options and --resume auto")
    assert "Traceback" not in done.stderr
    assert "ended 2" in done.stdout
    names = done.stdout.split()
    saved = [name for name in names if name.startswith("step_")]
    assert len(saved) > 1
    assert not any(".tmp-" in name for name in names)
    assert int(names[-1]) > 0  # what the failed save had taken is free again


@mounts
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_temporary_folder_and_shared_memory_lose_nothing(workers, rows, tmp_path):
    run = Run(rows, tmp_path / "run", f"--budget 4steps --data.num_workers {workers}")
    (tmp_path / "temporary").mkdir()
    full = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/temporary; cat /dev/zero > $TMPDIR/full; "
    fill = "cat /dev/zero > /dev/shm/full; " + full + " ".join(mlm(run))
    os.environ["TMPDIR"] = str(tmp_path / "temporary")
    try:
        done = in_a_file_system(["sh", "-c", fill], "/dev/shm", megabytes=1)
    finally:
        del os.environ["TMPDIR"]
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if workers else 0), done.stderr
    if workers:
        assert "/dev/shm" in done.stderr.splitlines()[-1]
    assert run.finish().code == 0


@pytest.mark.parametrize("moment", ["training", "validation", "save"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_ends_with_143(number, moment, rows, tmp_path):
    words = "--budget 500steps --trainer.val_check_interval 3"
    run = Run(rows, tmp_path / "run", words)
    ended = run.finish(run.start(signal=number, **{moment: 3}))
    assert ended.code == 143, ended.output
    assert "mlm: stopping after this step" in ended.output
    assert "go on with the same options and --resume auto" in ended.output
    assert "Traceback" not in ended.output
    last = max(run.steps())
    assert latest_checkpoint(run.run_dir / "checkpoints").name == f"step_{last:08d}"
    assert run.litter() == []


def test_a_second_signal_leaves_at_once(rows, tmp_path):
    run = Run(rows, tmp_path / "run", "--budget 500steps")
    process = run.start(sleep=3)
    run.wait_for(1, process)
    begin = time.monotonic()
    run.kill(process, signal.SIGTERM)
    time.sleep(1.2)
    run.kill(process, signal.SIGTERM)
    assert run.finish(process).code == -signal.SIGTERM
    assert time.monotonic() - begin < 2.5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_all_processes_twice_at_once_is_one_stop(number, rows, tmp_path):
    run = Run(rows, tmp_path / "run", "--budget 500steps --data.num_workers 2")
    process = run.start(training=3, workers=number, signal=number)
    run.wait_for(2, process)
    run.kill(process, number)
    ended = run.finish(process)
    assert ended.code == 143, ended.output
    assert "Traceback" not in ended.output
    last = max(run.steps())
    assert latest_checkpoint(run.run_dir / "checkpoints").name == f"step_{last:08d}"


def test_a_killed_loader_process_is_one_line_and_the_run_goes_on(rows, tmp_path):
    run = Run(rows, tmp_path / "run", "--budget 12steps --data.num_workers 2")
    ended = run.finish(run.start(training=6, workers=signal.SIGKILL))
    assert ended.code == 1
    assert "DataLoader worker" in ended.output.splitlines()[-1]
    assert "--resume auto" in ended.output.splitlines()[-1]
    assert "Traceback" not in ended.output
    assert run.finish().code == 0


def test_a_loader_process_killed_while_it_hands_a_batch_over_is_one_line_too():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(EOFError) as broken:
        ours.recv()
    assert "DataLoader worker is gone" in str(explain(broken.value))
    assert explain(ConnectionResetError("from elsewhere")) is None


def test_a_stuck_loader_process_ends_the_run_in_time(rows, tmp_path):
    words = "--budget 12steps --data.num_workers 2 --stall_timeout 3"
    run = Run(rows, tmp_path / "run", words)
    begin = time.monotonic()
    ended = run.finish(run.start(training=6, workers=signal.SIGSTOP))
    assert time.monotonic() - begin < 60
    assert ended.code == 1
    said = [line for line in ended.output.splitlines() if "--stall_timeout" in line]
    assert len(said) == 1
    assert "--resume auto" in said[0]
    assert "Traceback" not in ended.output
    assert run.finish().code == 0


def test_a_run_directory_in_use_is_refused(rows, tmp_path):
    run = Run(rows, tmp_path / "run", "--budget 20steps")
    process = run.start(sleep=0.2)
    run.wait_for(1, process)
    second = Run(rows, tmp_path / "second")
    second.argv = run.argv
    ended = second.finish()
    assert ended.code == 2
    assert f"a run is going on in it (process {process.pid} on" in ended.output
    assert len(ended.output.splitlines()) == 1
    run.kill(process)
    process.join()
    assert second.finish().code == 0


def test_a_run_directory_that_cannot_be_written_is_one_line(rows, tmp_path):
    run = Run(rows, tmp_path / "file")
    run.run_dir.write_text("a file")
    ended = run.finish()
    assert ended.code == 2
    assert len(ended.output.splitlines()) == 1
    assert run.run_dir.read_text() == "a file"


@mounts
def test_a_read_only_run_directory_is_one_line(rows, tmp_path):
    run = Run(rows, tmp_path / "fixed")
    run.run_dir.mkdir()
    script = f"mount --bind {run.run_dir} {run.run_dir} && mount -o remount,ro,bind {run.run_dir}"
    command = ["unshare", "-Urm", "sh", "-c", f'{script} && exec "$@"', "sh", *mlm(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Read-only file system" in done.stderr
    assert list(run.run_dir.iterdir()) == []


def test_a_clock_that_jumps_changes_nothing(rows, tmp_path):
    run = Run(rows, tmp_path / "run", "--budget 6s")
    begin = time.monotonic()
    ended = run.finish(run.start(jumping_clock=1e6))
    assert ended.code == 0, ended.output
    assert time.monotonic() - begin < 60
    assert len(run.steps()) > 1
