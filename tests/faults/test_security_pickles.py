"""Nothing pickled is read but tensors and plain values, and no second try is a less careful one.

What tests/test_checkpoint.py proves of model folders is not repeated.
"""

import ast
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from planted import SMALL, Bomb, io_of, newest, refusal, seal, seal_store
from safetensors.torch import load_file

import mlm
import tasks
from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.data.store import TokenStore
from mlm.inference import Embedder, FillMask


def plain_pickle(path, value):
    path.write_bytes(pickle.dumps(value))


def old_torch(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def in_a_tar(path, value):
    """PyTorch's format before 0.1.2, which its loader opens by itself."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(value if name == "pickle" else 0)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def in_a_script(path, value):
    """A TorchScript archive, which torch.load passes on to another loader."""
    torch.save(value, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/constants.pkl", pickle.dumps(value))


FORMATS = [
    plain_pickle,
    lambda path, value: torch.save(value, path),
    old_torch,
    in_a_tar,
    in_a_script,
]
FORMAT_NAMES = ["pickle", "torch", "old torch", "tar", "script"]


def test_the_payload_is_one(tmp_path):
    """Or the tests below would prove nothing."""
    torch.save({"a": Bomb(tmp_path / "marker")}, tmp_path / "x")
    torch.load(tmp_path / "x", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("write", FORMATS, ids=FORMAT_NAMES)
def test_a_pickle_among_weights(model, marker, loads, write, capsys):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    for value in (Bomb(marker), {"head.bias": Bomb(marker)}, tensors | {"more": Bomb(marker)}):
        loads.clear()
        write(model / "pytorch_model.bin", value)
        assert "pytorch_model.bin: damaged" in refusal(read_folder, model)
        assert len(loads) == 1  # no second try of another kind
    assert main(["fill-mask", "--model", str(model), "a [MASK]"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mlm:")]
    assert "pytorch_model.bin: damaged" in line
    (model / "pytorch_model.bin").rename(model / "part.bin")
    index = {"weight_map": dict.fromkeys(tensors, "part.bin")}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "part.bin: damaged" in refusal(read_folder, model)
    shutil.copy(model / "part.bin", model / "model.safetensors")
    assert "model.safetensors: damaged" in refusal(Embedder, model)


@pytest.mark.parametrize("write", FORMATS, ids=FORMAT_NAMES)
def test_a_pickle_as_a_checkpoints_state(made, run_dir, marker, loads, write, capsys):
    checkpoint = newest(run_dir)
    write(checkpoint / "state.pt", Bomb(marker))
    assert "damaged (its checksum differs)" in refusal(io_of().load_checkpoint, checkpoint)
    assert not loads  # what has another checksum is not even opened
    seal(checkpoint)
    assert "state.pt: cannot be read safely" in refusal(io_of().load_checkpoint, checkpoint)
    assert len(loads) == 1
    capsys.readouterr()
    words = f"pretrain --store {made}/store --run_dir {run_dir} {SMALL} --resume auto"
    assert main(words.split()) == 2
    assert "state.pt: cannot be read safely" in capsys.readouterr().err


WORKERS = "loops.fit_loop.state_dict.combined_loader"


@pytest.mark.parametrize("place", ["callbacks", "optimizer_states", "hyper_parameters", WORKERS])
def test_a_pickle_deep_inside_a_checkpoints_state(run_dir, marker, loads, place):
    """A data loader's workers, a callback, hyper-parameters: wherever a state is kept."""
    checkpoint = newest(run_dir)
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    inner = state
    *path, last = place.split(".")
    for name in path:
        inner = inner[name]
    inner[last] = {"worker_0": Bomb(marker)}
    torch.save(state, checkpoint / "state.pt")
    seal(checkpoint)
    assert "cannot be read safely" in refusal(io_of().load_checkpoint, checkpoint)


def test_a_lightning_checkpoint_is_no_model_and_no_place_to_resume_from(
    made, tmp_path, marker, loads, capsys, monkeypatch
):
    file = tmp_path / "hpc_ckpt_1.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Bomb(marker)}, file)
    assert "no such model folder" in refusal(read_folder, file) + refusal(FillMask, file)
    assert "no readable manifest.json" in refusal(io_of().load_checkpoint, file)
    words = f"pretrain --store {made}/store {SMALL} --run_dir {tmp_path}/run"
    assert main([*words.split(), "--resume", str(file)]) == 2
    # On a cluster Lightning looks for one of this name where it is started.
    monkeypatch.chdir(tmp_path)
    detect = "pytorch_lightning.trainer.connectors.checkpoint_connector.SLURMEnvironment.detect"
    monkeypatch.setattr(detect, lambda: True)
    assert main(words.split()) == 2
    assert "hpc_ckpt_1.ckpt: no readable manifest.json" in capsys.readouterr().err
    assert not loads


def arrow(field: pa.Field, column: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([field])) as writer:
        writer.write_batch(pa.record_batch([column], schema=pa.schema([field])))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("lie", ["name", "kind", "length", "offsets", "backwards", "no arrow"])
def test_arrow_files_that_hold_no_token_ids(store, lie):
    """Not even where the manifest is right; none is read beyond its buffers."""
    ids = pa.array(range(1234), pa.uint16())
    lists = pa.ListArray.from_arrays(pa.array([0, 999, 1234], pa.int32()), ids)
    name, column = {"name": ("x", lists), "kind": ("input_ids", ids)}.get(lie, ("input_ids", lists))
    content = arrow(pa.field(name, column.type), column)
    lies = {"length": (0, 999, 2**30), "offsets": (-5, 999, 1234), "backwards": (1234, 999, 0)}
    if lie in lies:
        ends = struct.pack("<iii", 0, 999, 1234)
        assert content.count(ends) == 1
        content = content.replace(ends, struct.pack("<iii", *lies[lie]))
    file = store / "train" / "data-00000-of-00001.arrow"
    file.write_bytes(b"PK" + content if lie == "no arrow" else content)
    seal_store(store)
    assert f"{file}: no token ids" in refusal(TokenStore.open(store).split, "train")


def test_a_pickle_in_an_arrow_schema(store, marker, loads):
    """What pyarrow once called an extension type, and loaded."""
    payload = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Bomb(marker)),
    }
    lists = pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), pa.array([1, 2, 3], pa.uint16()))
    file = store / "train" / "data-00000-of-00001.arrow"
    file.write_bytes(arrow(pa.field("input_ids", lists.type, metadata=payload), lists))
    seal_store(store)
    assert TokenStore.open(store).split("train").tokens(0, 3).tolist() == [1, 2, 3]


def test_what_a_run_saves_is_tensors_and_plain_values(run_dir, monkeypatch):
    monkeypatch.setattr(torch.serialization, "_get_safe_globals", list, raising=False)
    monkeypatch.setattr("torch._weights_only_unpickler._get_user_allowed_globals", dict)
    state = torch.load(newest(run_dir) / "state.pt", weights_only=True)

    def walk(value):
        yield type(value)
        for inner in value.values() if isinstance(value, dict) else value:
            if isinstance(inner, dict | list | tuple):
                yield from walk(inner)
            else:
                yield type(inner)

    plain = {dict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    assert set(walk(state)) <= plain
    assert "hyper_parameters" not in state


SOURCES = [p for package in (mlm, tasks) for p in Path(package.__file__).parent.rglob("*.py")]
OWN_PIPE = {"data/encoding.py": {"self._from", "source"}}
IMPORTERS = {"cli.py", "base.py", "demo/run.py"}
UNSAFE = """
    eval exec __import__ yaml.load yaml.full_load yaml.unsafe_load yaml.load_all np.load
    torch.jit.load torch.hub.load torch.package.PackageImporter pickle.loads pickle.Unpickler
    marshal.loads marshal.load shelve.open runpy.run_path
"""


def test_no_source_reads_anything_unsafely():
    """By its text: a path that no test takes counts as well."""
    found = {"torch.load": 0, "pickle.load": 0}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                parts = {name.split(".")[0] for name in names}
                assert not parts & {"dill", "joblib", "cloudpickle", "marshal", "transformers"}, (
                    path
                )
                assert not (isinstance(node, ast.ImportFrom) and parts & {"pickle", "yaml"}), path
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in UNSAFE.split(), f"{path}: {name}"
            assert not name.endswith(".load_from_checkpoint"), path
            assert "trust_remote_code" not in options, path
            if name == "torch.load":
                assert options["weights_only"] == "True", path
            if name == "pickle.load":
                (file,) = [key for key in OWN_PIPE if path.as_posix().endswith(key)]
                assert ast.unparse(node.args[0]) in OWN_PIPE[file]
            if name.endswith("import_module"):
                assert any(path.as_posix().endswith(key) for key in IMPORTERS), path
            if name in found:
                found[name] += 1
    assert min(found.values()) > 1  # or the names above are no longer those in use
