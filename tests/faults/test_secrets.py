"""No key of the environment reaches what a run writes or says; the audit finds keys in files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted import SMALL

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.exporting.model_card import model_card

ROOT = Path(__file__).parent.parent.parent
SENTINEL = "5ec2e7" * 6 + "5ec2"  # of the form that Weights & Biases wants
KEYS = {
    "WANDB_API_KEY": SENTINEL,
    "HF_TOKEN": f"hf_{SENTINEL}",
    "HUGGING_FACE_HUB_TOKEN": f"hf_{SENTINEL}",
    "HUGGINGFACE_TOKEN": f"hf_{SENTINEL}",
    "AWS_SECRET_ACCESS_KEY": SENTINEL,
    "GITHUB_TOKEN": f"ghp_{SENTINEL}",
    "OPENAI_API_KEY": f"sk-{SENTINEL}",
    "SOME_PASSWORD": SENTINEL,
}


def assert_no_key(run: Path, said: str) -> list[Path]:
    """Look into every file of a run, and at what it said; the files."""
    assert SENTINEL not in said
    files = [path for path in run.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "README.md", "config.json", "state.pt", "metrics.csv"} <= names
    assert [path for path in files if SENTINEL[:20].encode() in path.read_bytes()] == []
    return files


def test_no_key_of_the_environment_reaches_a_run(made, tmp_path, monkeypatch, capfd):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    words = f"pretrain --store {made}/store --run_dir {tmp_path}/run {SMALL}"
    assert main(words.split()) == 0
    out, err = capfd.readouterr()
    assert_no_key(tmp_path / "run", out + err)
    folder = read_folder(tmp_path / "run" / "model")
    assert SENTINEL not in model_card(folder, "mit", "x", folder.directory)


@pytest.mark.slow
def test_no_key_reaches_what_a_run_with_wandb_leaves(made, tmp_path):
    """Where keys are found: the environment, netrc, the Hub's token file, a remote of git."""
    home, run, where = tmp_path / "home", tmp_path / "run", tmp_path / "checkout"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(f"hf_{SENTINEL}")
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SENTINEL}\n")
    where.mkdir()
    git = ["git", "-C", str(where), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (
        ["init", "--quiet"],
        ["commit", "--quiet", "--allow-empty", "--message", "first"],
        ["remote", "add", "origin", f"https://me:{SENTINEL}@example.org/x.git"],
    ):
        subprocess.run([*git, *words], check=True)
    (where / "notes.txt").write_text(SENTINEL)
    subprocess.run([*git, "add", "notes.txt"], check=True)  # a change that is not committed
    words = f"pretrain --store {made}/store --run_dir {run} {SMALL} --logging.wandb offline"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-m", "mlm", *words.split()],
        cwd=where,
        env=environment | KEYS | {"HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "records offline" in done.stderr
    files = assert_no_key(run, done.stdout + done.stderr)
    assert any(path.suffix == ".wandb" for path in files)


# The audit


@pytest.fixture
def checkout(tmp_path):
    """A repository with nothing but the audit, and what its tools would say."""
    place = tmp_path / "checkout"
    (place / ".ci").mkdir(parents=True)
    (place / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "audit", place / ".ci")
    (place / ".venv" / "bin" / "python").symlink_to(sys.executable)
    subprocess.run(["git", "init", "--quiet", str(place)], check=True)
    return place


def audit(checkout, **tools: str):
    """Its exit code and lines; ``tools`` are shell scripts in place of the real ones."""
    for name, script in tools.items():
        tool = checkout / ".venv" / "bin" / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    subprocess.run(["git", "add", ".ci", *checkout.glob("*.*")], cwd=checkout, check=True)
    done = subprocess.run(
        [sys.executable, str(checkout / ".ci" / "audit")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def report(*packages) -> str:
    return f"echo '{json.dumps({'dependencies': packages})}'"


SOUND = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
BAD = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}


@pytest.mark.parametrize(
    ("tool", "code", "says"),
    [
        (report(SOUND, UNKNOWN), 0, "nothing found in 1 packages, 1 more could not be looked up"),
        (f"{report(SOUND, BAD)}; exit 1", 1, "c 2: CVE-1, fixed in 2.1"),
        (report(UNKNOWN), 0, "could not run: none of the packages could be looked up"),
        ("echo 'x: no route to host' >&2; exit 1", 0, "could not run: x: no route to host"),
        ("exit 1", 0, "could not run: no report"),
    ],
)
def test_the_audit_of_dependencies(checkout, tool, code, says):
    found, lines = audit(checkout, pip_audit=tool)
    assert found == code
    assert any(f"dependencies (pip-audit): {says}" in line for line in lines), lines


def test_an_audit_without_tools_says_so(checkout):
    code, lines = audit(checkout)
    assert code == 0
    assert [line.partition("could not run")[1] for line in lines] == ["could not run"] * 2 + [""]
    shutil.rmtree(checkout / ".git")
    done = subprocess.run(
        [sys.executable, checkout / ".ci" / "audit"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "tracked files: could not run: this is no git checkout" in done.stdout


@pytest.mark.parametrize(("tool", "code"), [("exit 0", 0), ("echo a; exit 3", 1), ("exit 1", 0)])
def test_the_audit_of_commits(checkout, tool, code):
    found, lines = audit(checkout, gitleaks=tool)
    assert found == code
    assert any("could not run" in line for line in lines if "gitleaks" in line) == ("1" in tool)


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN " + "RSA PRIVATE KEY-----",
        "AK" + "IA" + "ABCDEFGHIJKLMNOP",
        "gh" + "p_" + "a1" * 18,
        "h" + "f_" + "Ab" * 17,
        "sk" + "-" + "a1" * 20,
        "xo" + "xb-" + "1234567890-a",
        "AI" + "za" + "a" * 35,
        "py" + "pi-AgE" + "a" * 50,
        "WANDB_API_KEY" + "=" + "0a" * 20,
        "https://me:" + "a1" * 12 + "@example.org",
    ],
)
def test_the_audit_of_tracked_files(checkout, secret):
    assert audit(checkout)[0] == 0
    (checkout / "notes.txt").write_text("one line\nkey = " + secret + "\n")
    code, lines = audit(checkout)
    assert code == 1
    assert any("notes.txt:2: " in line for line in lines)
    assert secret not in "\n".join(lines)
