"""`mlm export` of fine-tuned models: a graph answers, and scores, as the model does."""

import json

import numpy as np
import pytest
import torch
from toy import write_csv, write_folder

from mlm.cli import main
from tasks.exporting import OnnxModel
from tasks.inference import Predictor
from tasks.text_classification import TextClassification

pytestmark = pytest.mark.slow


def export(model, output, *words, capsys):
    pytest.importorskip("onnxscript")
    words = ["export", "--format", "onnx", "--model", model, "--output", output, *words]
    assert main([*map(str, words)]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is no JSON


@pytest.mark.parametrize("kind", ["classifier", "regressor"])  # modern with mean, bert with cls
def test_a_graph_answers_as_the_model_does(kind, toy, numbers, tmp_path, capsys, request):
    model = request.getfixturevalue(kind)
    table = (toy if kind == "classifier" else numbers)["validation"]
    said = export(model, tmp_path / "onnx", "--data", table, capsys=capsys)
    assert said["max_difference"] < 1e-4
    torch_scores, graph_scores = said["scores"]["torch"], said["scores"]["model.onnx"]
    assert torch_scores.keys() == graph_scores.keys() >= {"loss"}
    for name, value in torch_scores.items():
        # Two answers that differ by a rounding may change places, which a rank correlation counts.
        near = 0.01 if name == "spearman" else 1e-4
        assert graph_scores[name] == pytest.approx(value, rel=1e-5, abs=near), name

    predictor = Predictor.from_pretrained(model, precision="fp32")
    texts = ["a dull film", "the", "people and their house with a moving story about it"]
    rows = [(text,) if kind == "classifier" else (text, "a house") for text in texts]
    batch = predictor.task.collate(predictor.task.encode(rows, predictor.tokenizer))
    with torch.inference_mode():
        ours = predictor.model(batch)
    found = OnnxModel(tmp_path / "onnx" / "model.onnx")(batch)
    assert np.allclose(found.numpy(), ours.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pooling", ["max", "attention"])
def test_a_graph_pools_and_mixes_layers_as_the_model_does(
    pooling, toy, tokenizer, tmp_path, capsys
):
    settings = {"pooling": pooling, "layers": 2}
    model = write_folder(
        tmp_path / "model", TextClassification, toy["train"], tokenizer, **settings
    )
    said = export(model, tmp_path / "onnx", "--data", toy["validation"], capsys=capsys)
    assert said["max_difference"] < 1e-4
    scores = said["scores"]
    assert scores["model.onnx"]["loss"] == pytest.approx(scores["torch"]["loss"], rel=1e-4)


def test_what_eight_bits_cost_in_accuracy_is_printed(classifier, toy, tmp_path, capsys):
    words = ["--int8", "true", "--data", toy["validation"]]
    said = export(classifier, tmp_path / "onnx", *words, capsys=capsys)
    assert said["scores"].keys() == {"torch", "model.onnx", "model_int8.onnx"}
    full, small = said["scores"]["torch"], said["scores"]["model_int8.onnx"]
    for name, change in said["int8_score_difference"].items():
        assert change == pytest.approx(small[name] - full[name])
    assert said["int8_score_difference"]["loss"] != 0


def test_a_score_that_is_undefined_is_null(regressor, tmp_path, capsys):
    rows = [("a film", "a story", 2.0), ("the house", "people", 2.0)]
    table = write_csv(tmp_path / "rows.csv", ["sentence1", "sentence2", "label"], rows)
    said = export(regressor, tmp_path / "onnx", "--data", table, capsys=capsys)
    assert said["scores"]["model.onnx"]["pearson"] is None
