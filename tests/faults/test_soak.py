"""Hours in small: what a run holds of the machine does not grow."""

import os
import statistics
import time
from pathlib import Path

import pytest
from harness import Run
from sweep import examples

SECONDS = int(float(os.environ.get("MLM_SOAK_MINUTES", examples(1, 20))) * 60)


def held(pid: int, run_dir: Path) -> dict[str, float]:
    """What a process and its folder take up."""
    process = Path("/proc", str(pid))
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    checkpoints = list((run_dir / "checkpoints").glob("*"))
    return {
        "megabytes": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(list((process / "fd").iterdir())),
        "checkpoints": len(checkpoints),
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_files_threads_and_disk_stay_level(workers, rows, tmp_path):
    words = f"--budget {SECONDS // 2}s --data.num_workers {workers} --checkpoint.keep 3"
    words += " --checkpoint.every_n_steps 50 --trainer.val_check_interval 30"
    run = Run(rows, tmp_path / "run", words)
    process = run.start()
    run.wait_for(100, process)
    found = []
    while process.is_alive():
        try:
            found.append(held(process.pid, run.run_dir))
        except (FileNotFoundError, ProcessLookupError, KeyError):
            break
        time.sleep(SECONDS / 2000)
    assert run.finish(process).code == 0
    begin, end = found[len(found) // 10 : len(found) // 2], found[len(found) // 2 : -10]
    assert len(end) > 20
    for name, spare in (("megabytes", 10), ("threads", 1), ("files", 1), ("checkpoints", 0)):
        # The median, since a validation or a save has a few files open for a moment.
        level = [statistics.median(sample[name] for sample in part) for part in (begin, end)]
        highest = max(sample[name] for sample in found)
        print(f"{workers} workers, {name}: {level[0]:g}, later {level[1]:g}, at most {highest:g}")
        assert level[1] <= level[0] + spare, name
        assert highest <= level[0] + max(4 * spare, level[0] / 2), name
    assert max(sample["checkpoints"] for sample in found) <= 5  # three, one being made, one going
    print(f"{len(run.steps())} steps")
