"""Speech codes <-> byte-pair-merged ids: parity with the goldens, lengths, training, storage and errors."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from ming.codec_bpe import CodecBPE, read_mapping
from ming.release import read_released_codec_bpe

GOLDENS = Path(__file__).resolve().parent / "goldens" / "codec_bpe"
GOLDEN = json.loads((GOLDENS / "cases.json").read_text(encoding="utf-8"))
CASES = list(enumerate(GOLDEN["cases"]))


@pytest.fixture(scope="module")
def bpe():
    return CodecBPE.from_pretrained(GOLDENS)


@pytest.fixture(scope="module")
def released_kind():
    """As released: special tokens first, a whitespace pre-tokenizer, and codes that the vocabulary does not hold."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "一": 2, "丁": 3, "七": 4, "一丁": 5, "一丁七": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("一", "丁"), ("一丁", "七")]))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return CodecBPE(tokenizer, "一丁七万丈")


def some_sequences(count=40, seed=0):
    draw = random.Random(seed)
    phrases = [[draw.randrange(16) for _ in range(4)] for _ in range(6)]
    return [[code for _ in range(12) for code in draw.choice(phrases)] for _ in range(count)]


@pytest.mark.parametrize("index, case", CASES, ids=lambda value: value if isinstance(value, int) else value["op"])
def test_golden_cases(bpe, index, case):
    if case["op"] == "encode":
        assert bpe.encode(case["codes"]) == case["ids"]
        assert [bpe.tokenizer.id_to_token(i) for i in case["ids"]] == case["tokens"]
        assert bpe.decode(case["ids"]) == case["decoded_back"]
    else:
        assert bpe.decode(case["ids"]) == case["codes"]
        # The library joins tokens with spaces, which the released code removes.
        assert bpe.tokenizer.decode(case["ids"]) == case["raw_string"]


def test_sizes(bpe):
    assert (bpe.vocab_size, bpe.num_codes) == (GOLDEN["vocab"], GOLDEN["n_codes"])
    assert bpe.encodable.all() and bpe.encodable.shape == (bpe.num_codes,)


def test_lengths_are_those_of_decoding(bpe):
    lengths = bpe.lengths
    assert lengths.dtype == torch.int64 and lengths.shape == (bpe.vocab_size,)
    assert lengths.tolist() == [len(bpe.decode([index])) for index in range(bpe.vocab_size)]
    ids = bpe.encode([3, 1] * 50)
    assert int(lengths[ids].sum()) == 100
    lengths.zero_()
    assert bpe.lengths.min() == 1, "callers get a copy"


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda c: torch.tensor(c, dtype=torch.int32)])
def test_sequences_of_any_kind(bpe, kind):
    case = GOLDEN["cases"][13]
    assert bpe.encode(kind(case["codes"])) == case["ids"]
    assert bpe.decode(kind(case["ids"])) == case["codes"]


def test_special_tokens_stand_for_nothing(released_kind):
    assert released_kind.lengths.tolist() == [0, 0, 1, 1, 1, 2, 3]
    assert released_kind.encode([0, 1, 2, 0, 1, 1]) == [6, 5, 3]
    assert released_kind.decode([0, 6, 1, 5]) == [0, 1, 2, 0, 1]


def test_codes_that_the_vocabulary_does_not_hold(released_kind):
    assert released_kind.encodable.tolist() == [True, True, True, False, False]
    with pytest.raises(ValueError, match=r"speech codes \[3, 4\] are not in the vocabulary, which holds 3 of 5 codes"):
        released_kind.encode([4, 0, 3, 4])
    assert released_kind.decode(released_kind.encode([0, 3, 1, 4, 2], unknown="drop")) == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown='skip' is not supported; accepted are error, drop"):
        released_kind.encode([0], unknown="skip")


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("encode", [0, 64, -1], r"speech codes \[-1, 64\] are unknown; accepted are 0..63"),
        ("decode", [1, 160, 9999], r"speech ids \[160, 9999\] are outside the vocabulary; accepted are 0..159"),
        ("decode", [-5], r"speech ids \[-5\] are outside"),
        ("encode", [0.5], "must be one flat sequence of integers, got list"),
        ("encode", torch.tensor([1.0]), r"flat sequence of integers"),
        ("encode", torch.ones(1, 3, dtype=torch.int64), r"got Tensor of shape \(1, 3\)"),
        ("encode", np.ones((2, 3), np.int64), r"got ndarray of shape \(2, 3\)"),
        ("decode", "12", "flat sequence of integers, got str"),
        ("encode", 3, "flat sequence of integers, got int"),
    ],
)
def test_bad_codes_and_ids(bpe, method, values, message):
    with pytest.raises(ValueError, match=message):
        getattr(bpe, method)(values)


def test_saved_and_loaded(bpe, released_kind, tmp_path):
    codes = GOLDEN["cases"][17]["codes"]
    for number, (one, tried) in enumerate([(bpe, codes), (released_kind, [0, 1, 2, 1])]):
        folder = tmp_path / str(number) / "s3_bpe"
        one.save_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["char_mapping.txt", "tokenizer.json"]
        again = CodecBPE.from_pretrained(folder)
        assert again.encode(tried) == one.encode(tried)
        assert torch.equal(again.lengths, one.lengths) and torch.equal(again.encodable, one.encodable)
    assert (tmp_path / "0/s3_bpe/char_mapping.txt").read_bytes() == (GOLDENS / "char_mapping.txt").read_bytes()


def test_the_two_files_and_the_talkers_folder_of_a_release(bpe, tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "s3_bpe")
    (tmp_path / "tokenizer.json").write_text("{}")  # the text tokenizer beside it is not taken for the speech one
    files = (tmp_path / "s3_bpe/tokenizer.json", tmp_path / "s3_bpe/char_mapping.txt")
    read = (CodecBPE.from_pretrained(files), read_released_codec_bpe(tmp_path), read_released_codec_bpe(str(tmp_path)))
    for one in read:
        assert one.encode([34, 13, 34]) == bpe.encode([34, 13, 34])


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*char_mapping.txt; a speech vocabulary is tokenizer.json and"):
        CodecBPE.from_pretrained(tmp_path)
    shutil.copy(GOLDENS / "char_mapping.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no .*tokenizer.json"):
        CodecBPE.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
        CodecBPE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the 0 codes must be 0, 1, 2"),
        ("0\t一\n2\t丁\n", "the 2 codes must be 0, 1, 2, ... without a gap"),
        ("0\t一\n0\t丁\n", "line 2: '0\\\\t丁' is no new 'code<TAB>character'"),
        ("0 一\n", "line 1"),
        ("0\t一丁\n", "line 1"),
        ("x\t一\n", "line 1"),
    ],
)
def test_malformed_mapping(text, message, tmp_path):
    (tmp_path / "char_mapping.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_mapping(tmp_path / "char_mapping.txt")


def test_windows_line_ends(tmp_path):
    (tmp_path / "char_mapping.txt").write_bytes("0\t一\r\n1\t丁\r\n".encode())
    assert read_mapping(tmp_path / "char_mapping.txt") == ["一", "丁"]


def test_tables_that_do_not_fit(bpe):
    with pytest.raises(ValueError, match="stand for more than one code"):
        CodecBPE(bpe.tokenizer, ["一", "一"])
    with pytest.raises(ValueError, match=r"token '.' \(id 63\) holds \['.'\], which char_mapping.txt has no code for"):
        CodecBPE(bpe.tokenizer, bpe.characters[:63])
    with pytest.raises(ValueError, match="ids of the speech vocabulary must be 0, 1, 2, ... without a gap"):
        CodecBPE(Tokenizer(models.BPE({"一": 0, "丁": 2}, [])), "一丁")


def test_trained_vocabulary(tmp_path):
    sequences = some_sequences()
    bpe = CodecBPE.train([*sequences, torch.tensor([1, 2, 3])], num_codes=20, vocab_size=48)
    assert (bpe.vocab_size, bpe.num_codes) == (48, 20)
    assert bpe.encodable.all(), "codes that the data lacks are encodable too"
    assert [bpe.decode([index]) for index in range(20)] == [[code] for code in range(20)]
    unseen = some_sequences(5, seed=1) + [list(range(20))]
    for sequence in sequences + unseen:
        assert bpe.decode(bpe.encode(sequence)) == sequence
    shortened = sum(len(bpe.encode(sequence)) for sequence in sequences) / sum(map(len, sequences))
    assert shortened < 0.5
    bpe.save_pretrained(tmp_path)
    assert CodecBPE.from_pretrained(tmp_path).encode(sequences[0]) == bpe.encode(sequences[0])


def test_training_is_deterministic_across_processes():
    here = CodecBPE.train(some_sequences(), 20, 48).tokenizer.to_str()
    code = (
        "from test_codec_bpe import CodecBPE, some_sequences\n"
        "print(CodecBPE.train(some_sequences(), 20, 48).tokenizer.to_str())"
    )
    folders = f"import sys; sys.path[:0] = {[str(GOLDENS.parents[1]), str(GOLDENS.parents[2])]!r}\n"
    result = subprocess.run([sys.executable, "-c", folders + code], capture_output=True, text=True, check=True)
    assert result.stdout.rstrip("\n") == here


@pytest.mark.parametrize(
    ("sequences", "num_codes", "vocab_size", "message"),
    [
        ([[0, 1]], 0, 8, "num_codes=0 must be in 1..20902"),
        ([[0, 1]], 30000, 30001, "num_codes=30000 must be in 1..20902"),
        ([[0, 1]], 8, 7, "vocab_size=7 must be at least num_codes=8"),
        ([[0, 8]], 8, 9, r"speech codes \[8\] are unknown; accepted are 0..7"),
        ([[0, 1], [2]], 8, 12, "2 sequences give 9 ids, fewer than vocab_size=12; pass more sequences or a smaller"),
        ([], 8, 9, "0 sequences give 8 ids"),
    ],
)
def test_bad_training(sequences, num_codes, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        CodecBPE.train(sequences, num_codes, vocab_size)
