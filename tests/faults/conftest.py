"""What runs need to be struck: a small store."""

import random

import pytest

WORDS = "the a one cat dog bird fish tree sat ran flew swam on under over near red blue green old"


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A token store of 160 documents, about a hundred rows of 32 tokens."""
    from mlm.data.prepare import PrepareOptions, prepare

    folder, rng, words = tmp_path_factory.mktemp("faults"), random.Random(0), WORDS.split()
    documents = [" ".join(rng.choices(words, k=rng.randint(4, 40))) for _ in range(160)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    output = folder / "store"
    prepare(PrepareOptions(corpus=[str(folder / "corpus.txt")], output=str(output), vocab_size=60))
    return output
