"""A document that spells `<|endoftext|>` got the control token there: a false end of the document.

Reported as FranxYao/Long-Context-Data-Engineering #14 and google-deepmind/gemma #770.
"""

from pathlib import Path

from cocomix.data import Document, load_tokenizer, tokenize_corpus, train_tokenizer
from cocomix.data.tokenize import RustEncoder, encode_documents

TEXT = "the mark <|endoftext|> ends a text"


def test_text_stays_text(tmp_path: Path) -> None:
    train_tokenizer(["the road and the ship are counted. "] * 20, 300, tmp_path)
    (ids,) = (document.tolist() for document in encode_documents(RustEncoder(tmp_path, 300, 0), [Document("a", TEXT)]))
    tokenizer = load_tokenizer(str(tmp_path))
    assert ids.count(0) == 1 and ids[-1] == 0 and tokenizer.decode(ids[:-1]) == TEXT
    shards = tokenize_corpus(tokenizer, [Document("a", TEXT)], tmp_path / "tokens")
    assert shards.span(0, shards.n_tokens).tolist() == ids
