"""What tests of training need: a small store, and the settings of a small run."""

import random

import pytest

DETERMINERS = ["the", "a", "one", "this", "that"]
NOUNS = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone"]
VERBS = ["sat", "ran", "flew", "swam", "stood", "fell"]
ADVERBS = ["quickly", "slowly", "quietly"]
PREPOSITIONS = ["on", "under", "over", "near", "behind"]
ADJECTIVES = ["red", "blue", "green", "old", "young", "small", "large"]


def sentences(count, seed=0):
    """Small sentences with some grammar, so that there is something to learn."""
    order = [DETERMINERS, ADJECTIVES, NOUNS, VERBS, ADVERBS, PREPOSITIONS, DETERMINERS, NOUNS]
    rng = random.Random(seed)
    return [" ".join(rng.choice(words) for words in order) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of 120 documents of 1 to 12 sentences."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    rng = random.Random(1)
    lines = iter(sentences(2000))
    documents = ["\n".join(next(lines) for _ in range(rng.randint(1, 12))) for _ in range(120)]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def store(corpus, tmp_path_factory):
    """A token store of `corpus`."""
    from mlm.data.prepare import PrepareOptions, prepare

    output = tmp_path_factory.mktemp("stores") / "store"
    prepare(PrepareOptions(corpus=[str(corpus)], output=str(output), vocab_size=120))
    return output


@pytest.fixture
def pretrain_settings(store, tmp_path):
    """A function of command-line words to the settings of a tiny pretraining run."""
    from mlm.arguments import CommandParser, settings
    from mlm.commands.pretrain import add_arguments

    def parse(words=""):
        parser = CommandParser("pretrain", "")
        add_arguments(parser)
        tiny = "--model.size tiny --model.num_hidden_layers 1 --model.hidden_size 32"
        small = "--data.batch_size 8 --data.sequence_length 32"
        quiet = "--logging.wandb off --trainer.accelerator cpu --trainer.precision fp32"
        place = "" if "--run_dir" in words else f"--run_dir {tmp_path / 'run'}"
        limit = "" if "--budget" in words or "max_" in words else "--budget 6steps"
        architecture = "" if "--model " in words else f"{tiny} --model.num_attention_heads 2"
        line = f"--store {store} {architecture} {small} {quiet} --trainer.log_every_n_steps 1"
        return settings(parser.parse(f"{line} {place} {limit} {words}".split()))

    return parse
