"""What the fuzzers once found is read or refused as it should be, also without a fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest
import readers

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", readers.READERS)
def test_every_file_of_the_corpus_is_read_or_refused(reader: str) -> None:
    files = sorted((CORPUS / reader).iterdir())
    accepted = [readers.read(reader, file.read_bytes()) for file in files]
    assert len(files) >= 1
    assert any(accepted) or reader in ("checkpoint", "safetensors"), "seeds hold no whole network"


def test_what_a_reader_does_not_foresee_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(data: bytes) -> None:
        raise KeyError(data)

    monkeypatch.setitem(readers.READERS, "idx", stumble)
    with pytest.raises(KeyError):
        readers.read("idx", b"")
