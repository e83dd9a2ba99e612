"""Config files: found by name, read with their lines, written so that they read back the same."""

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mlm.config_files import Setting, find_config, nearest, read_config, shipped_configs, to_yaml
from mlm.errors import UserError

KNOWN = {"output", "budget", "seed", "data.path", "data.label_column", "optimizer.lr", "data.kw"}


@pytest.fixture
def config(tmp_path):
    def write(text):
        file = tmp_path / "run.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def values(path, known=KNOWN):
    return {key: setting.value for key, setting in read_config(path, known).items()}


# --- finding ---


@pytest.fixture
def shipped(tmp_path):
    folder = tmp_path / "configs" / "pretrain"
    folder.mkdir(parents=True)
    for name in ("mini_cpu", "base_gpu"):
        (folder / f"{name}.yaml").write_text("seed: 1\n")
    return tmp_path / "configs"


def test_a_bare_word_is_a_shipped_config(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini_cpu").write_text("a file of that name in the working folder changes nothing")
    assert find_config("mini_cpu", "pretrain", shipped) == shipped / "pretrain" / "mini_cpu.yaml"


def test_anything_else_is_a_path(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").write_text("seed: 1\n")
    assert find_config("own", "pretrain", shipped).name == "own"
    path = str(shipped / "pretrain" / "mini_cpu.yaml")
    assert str(find_config(path, "finetune", shipped)) == path


@pytest.mark.parametrize("name", ["mini_cpi", "../pretrain/mini_cpu", "no/such.yaml"])
def test_an_unknown_name_lists_the_shipped_ones(shipped, name):
    with pytest.raises(UserError, match=r"no such file; the shipped ones are base_gpu, mini_cpu$"):
        find_config(name, "pretrain", shipped)


def test_a_folder_is_not_a_config(shipped):
    with pytest.raises(UserError, match="this is a folder"):
        find_config(str(shipped), "pretrain", shipped)


def test_this_installation_has_shipped_configs():
    assert (shipped_configs() / "pretrain").is_dir()


# --- the nearest key ---


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("data.labl_column", "data.label_column"),
        ("label_column", "data.label_column"),
        ("lr", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("dta.path", "data.path"),
        ("ouput", "output"),
        ("dta", "data"),
        ("optimzer", "optimizer"),
        ("optimizer.lrr", "optimizer.lr"),
        ("data.zebra", None),
        ("zebra", None),
        ("", None),
    ],
)
def test_nearest(key, expected):
    assert nearest(key, KNOWN) == expected


# --- reading ---


def test_nested_and_dotted_keys_mean_the_same(config):
    nested = config("output: o\ndata:\n  label_column: y\n  kw: {a: 1}\n")
    expected = {"output": "o", "data.label_column": "y", "data.kw": {"a": 1}}
    assert values(nested) == expected
    assert values(config("output: o\ndata.label_column: y\ndata.kw: {a: 1}\n")) == expected


def test_a_text_under_a_group_with_a_path_is_that_path(config):
    assert values(config("data: train.csv\n")) == {"data.path": "train.csv"}


def test_each_setting_knows_its_line(config):
    path = config("# a comment\noutput: o\ndata:\n  label_column: y\n")
    assert read_config(path, KNOWN)["data.label_column"] == Setting("y", f"{path}, line 4")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "data:\n", "~\n"])
def test_nothing_set(config, text):
    assert values(config(text)) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("1e-3", 1e-3),
        ("3E4", 3e4),
        ("-.5", -0.5),
        ("010", 10),
        ("1_000", "1_000"),
        ("-.inf", -math.inf),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("0x10", "0x10"),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_has_them(config, text, value):
    assert values(config(f"output: {text}\n"))["output"] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  labl_column: y\n", r"line 2: data\.labl_column: no such setting; did you mean "),
        ("lr: 1\n", r"line 1: lr: no such setting; did you mean optimizer\.lr\?"),
        ("optimizer: 3\n", r"line 1: optimizer: expected settings such as `optimizer\.lr`, got 3"),
        ("optimizer: [1]\n", r"expected settings such as"),
        ("- a\n- b\n", r"line 1: expected settings such as `budget`, got \['a', 'b'\]"),
        ("hello", r"line 1: expected settings such as"),
        ("seed: 1\nseed: 2\n", r"line 2: seed is set twice \(before in .*line 1\)"),
        ("data: [4\n b: : 3\n", r"line 2: not valid YAML: "),
        ("seed: 1\n\tbudget: 2\n", r"line 2: not valid YAML: "),
        ("seed: *unknown\n", r"line 1: not valid YAML: "),
        ("seed: 1\n---\nseed: 2\n", r"line 2: not valid YAML: "),
        ("seed: !!python/object:os.system {}\n", r"line 1: seed: could not determine"),
        ("? [a, b]\n: 1\n", r"no such setting"),
        ("data: &a\n  data.kw: *a\n", r"run\.yaml"),
        (b"seed: \xff\n", r"not a YAML file \(byte 6 is not UTF-8\)"),
        (b"seed: \x00\n", r"not valid YAML"),
        ("seed: " + "9" * 5000, r"line 1: seed: Exceeds the limit"),
        ("seed: " + "[" * 5000, r"not valid YAML"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(config, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config(config(text), KNOWN)
    assert "\n" not in str(caught.value)
    assert "run.yaml" in str(caught.value)


# --- writing ---

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        ["off", "no", "1e-3", "1:30", "~", "null", "0o7", "=", "<<", "2024-01-31", "1_0"]
    ),
)


@given(st.dictionaries(st.sampled_from(sorted(KNOWN)), st.one_of(SCALARS, st.lists(SCALARS))))
@example({"budget": "\x85", "output": "a\u2028b", "data.path": [" \u2029"]})
def test_what_is_written_reads_back_the_same_in_both_yamls(tmp_path_factory, settings):
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(to_yaml(settings), encoding="utf-8", newline="")
    assert values(file) == settings
    # jsonargparse and other people's tools read YAML 1.1, but for floats without a dot.
    loaded = yaml.safe_load(to_yaml({k: v for k, v in settings.items() if isinstance(v, str)}))
    assert (loaded or {}) == {k: v for k, v in settings.items() if isinstance(v, str)}


def test_tuples_are_written_as_lists(config):
    assert values(config(to_yaml({"data.kw": (1, 2)}))) == {"data.kw": [1, 2]}
