"""What every test run shares."""

import os
import signal

import pytest

# No test needs a network; the library reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor may one upload where a key happens to be configured.
os.environ["WANDB_MODE"] = "disabled"

# Side by side with others each test gets one thread: more than there are cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background, a shell's children ignore Ctrl-C, and so would ours.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
