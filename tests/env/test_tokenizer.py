import json
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from threading import Thread

import huggingface_hub
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import GPT2_TOKENIZER
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.env.tokenizer import EOU, ReplyTokenizer, load_tokenizer
from dailydialog_gym.hub import hub_is_off


def byte_level_bpe(texts, special_tokens, vocab_size=400):
    """A byte-level BPE like GPT-2's, trained on a few texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def saved(folder, backend, **special):
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


# From these texts the BPE trainer learns several ways to split the marker, which depend on the characters around it.
MARKED = ["Well . <EOU>", "Really?<EOU>", "no<EOU> yes", "<EOU>>", "<<EOU", "EOU>.", "O U E <E OU", "E<E <E>"] * 20


@pytest.fixture(scope="module")
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "builtin":
        return load_tokenizer("builtin")
    if request.param == "gpt2":
        if not GPT2_TOKENIZER.exists():
            pytest.skip("needs GPT-2's vocabulary in ../shared/data/gpt2-tokenizer")
        own = GPT2TokenizerFast(vocab=str(GPT2_TOKENIZER / "vocab.json"), merges=str(GPT2_TOKENIZER / "merges.txt"))
        own.save_pretrained(folder)
        return load_tokenizer(str(folder))
    marker = [EOU] if request.param == "one token" else []
    texts = [text for text in MARKED if not marker or EOU not in text]
    return load_tokenizer(saved(folder, byte_level_bpe(texts, ["<|end|>", *marker]), eos_token="<|end|>"))


KINDS = ["builtin", "one token", "several tokens", "gpt2"]
every_tokenizer = pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
splitting = pytest.mark.parametrize("tokenizer", ["several tokens", "gpt2"], indirect=True)


@cache
def pieces(tokenizer):
    return {i: piece for piece, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}


def eos_id(tokenizer):
    ids = map(tokenizer.backend.token_to_id, ["<|endoftext|>", "<|end|>", EOU])
    return next(i for i in ids if i is not None)


@cache
def drawn_ids(tokenizer):
    """Random sequences of ids. Most tokens share a character with the marker, so that many sequences spell it."""
    vocabulary = {i: piece for i, piece in pieces(tokenizer).items() if i != eos_id(tokenizer) or piece == EOU}
    related = [i for i, piece in vocabulary.items() if piece.strip("Ġ") in EOU or set(piece) & {"<", ">"}]
    runs = tokenizer.encode([EOU, " " + EOU, "<EO", "<E<EOU>", "?<EOU>"])
    tokens = st.sampled_from(related) | st.sampled_from(list(vocabulary))
    return st.lists(st.sampled_from(runs) | st.lists(tokens, max_size=6), max_size=4).map(chain.from_iterable).map(list)


def ends(tokenizer, ids):
    """Whether the automaton is in the accepting state after these tokens."""
    state = 0
    for i in ids:
        state = tokenizer.transitions[state, i]
    return state == tokenizer.accepting_state


# The end of an utterance


@pytest.mark.parametrize("tokenizer", ["builtin", "one token"], indirect=True)
def test_the_marker_is_one_special_token(tokenizer):
    (marker,) = tokenizer.encode([EOU])[0]
    assert pieces(tokenizer)[marker] == EOU
    assert (tokenizer.transitions[:, marker] == tokenizer.accepting_state).all()


@splitting
def test_the_marker_is_several_ordinary_tokens(tokenizer):
    (ids,) = tokenizer.encode([" " + EOU])
    assert len(ids) > 1
    assert ends(tokenizer, ids)
    assert not any(ends(tokenizer, ids[:i]) for i in range(len(ids)))


@pytest.mark.parametrize("tokenizer", ["gpt2"], indirect=True)
def test_gpt2_cuts_the_marker_in_four(tokenizer):
    (ids,) = tokenizer.encode([" " + EOU])
    assert [pieces(tokenizer)[i] for i in ids] == ["Ġ<", "E", "OU", ">"]
    cuts = {tuple(pieces(tokenizer)[i] for i in tokenizer.encode([text])[0]) for text in ("Yes?<EOU>", "a<EOU>>", EOU)}
    assert len(cuts) == 3
    assert all(ends(tokenizer, ids) for ids in tokenizer.encode(["Yes?<EOU>", "a<EOU>>", EOU, "<E<EOU>", "<EOU>."]))
    assert not any(ends(tokenizer, ids) for ids in tokenizer.encode(["<EOU", "EOU>", "< EOU>", "<EO U>", "<eou>"]))


@every_tokenizer
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_automaton_accepts_exactly_when_the_tokens_spell_the_marker(tokenizer, data):
    ids = data.draw(drawn_ids(tokenizer))
    text = "".join(pieces(tokenizer)[i] for i in ids)
    assert ends(tokenizer, ids) == (EOU in text)


@every_tokenizer
@settings(deadline=None)
@given(text=st.text(alphabet="<EOU> ?é.", max_size=24) | st.text(max_size=24).map(lambda text: text + EOU + "x"))
@example(text="<<EOU>")
def test_automaton_accepts_a_text_exactly_when_it_holds_the_marker(tokenizer, text):
    assert ends(tokenizer, tokenizer.encode([text])[0]) == (EOU in text)


@every_tokenizer
def test_the_end_of_sequence_token_ends_a_reply_in_every_state(tokenizer):
    assert (tokenizer.transitions[:, eos_id(tokenizer)] == tokenizer.accepting_state).all()


@every_tokenizer
def test_nothing_leaves_the_accepting_state(tokenizer):
    assert (tokenizer.transitions[tokenizer.accepting_state] == tokenizer.accepting_state).all()
    assert tokenizer.transitions.shape == (len(EOU) + 1, tokenizer.vocab_size)


def random_rows(tokenizer, rng, n=64, width=12):
    """Rows of random ids: about half contain the marker, some contain EOS, and some contain neither."""
    rows = rng.integers(0, tokenizer.vocab_size, (n, width))
    (marker,) = tokenizer.encode([" " + EOU])
    for row in rows[::2]:
        start = rng.integers(0, width)
        row[start : start + len(marker)] = marker[: width - start]
    rows[::5, rng.integers(0, width)] = eos_id(tokenizer)
    return rows


def reply_lengths(tokenizer, rows):
    """By the tokenizer's automaton, the number of tokens of each row up to and including the one that ends it."""
    lengths, state = np.full(len(rows), rows.shape[1]), np.zeros(len(rows), np.int64)
    for t in range(rows.shape[1]):
        state = np.where(state == tokenizer.accepting_state, state, tokenizer.transitions[state, rows[:, t]])
        lengths = np.where(state == tokenizer.accepting_state, np.minimum(lengths, t + 1), lengths)
    return lengths


@every_tokenizer
def test_reply_lengths_count_up_to_the_token_that_ends_the_reply(tokenizer):
    rows, vocabulary = random_rows(tokenizer, np.random.default_rng(0)), pieces(tokenizer)

    def length(row):
        text = ""
        for t, i in enumerate(row, 1):
            text += vocabulary[i]
            if EOU in text or i == eos_id(tokenizer):
                return t
        return len(row)

    lengths = reply_lengths(tokenizer, rows)
    assert lengths.tolist() == [length(row) for row in rows]
    assert len(set(lengths.tolist())) > 4


@every_tokenizer
def test_reply_lengths_of_a_row_do_not_depend_on_other_rows(tokenizer):
    rows = random_rows(tokenizer, np.random.default_rng(1))
    assert reply_lengths(tokenizer, rows).tolist() == [reply_lengths(tokenizer, row[None])[0] for row in rows]


# Texts


@every_tokenizer
def test_replies_decode_to_their_text_without_the_end(tokenizer):
    texts = ["I see .", "Well , why not ?", "It's 3.50 , sir .", "Ünïcode 你好 🙂", ""]
    for end in (f" {EOU}", EOU, f"  {EOU} and more"):
        rows = [np.array(ids, np.int64) for ids in tokenizer.encode([f" {text}{end}" for text in texts])]
        assert tokenizer.decode([row[: reply_lengths(tokenizer, row[None])[0]] for row in rows]) == texts
    whole = [np.array(ids, np.int64) for ids in tokenizer.encode([f"\n{text} " for text in texts])]
    assert tokenizer.decode(whole) == texts
    assert tokenizer.decode([np.append(row, eos_id(tokenizer)).astype(np.int64) for row in whole]) == texts


@every_tokenizer
def test_a_reply_without_tokens_is_the_empty_text(tokenizer):
    assert tokenizer.decode([np.array([], np.int64)]) == [""]
    assert tokenizer.decode([]) == []
    assert tokenizer.encode([]) == []


@every_tokenizer
def test_a_batch_is_encoded_and_decoded_as_its_rows(tokenizer):
    texts = [u for dialogue in load_dialogues("builtin", "test")[:5] for u in dialogue.utterances]
    ids = tokenizer.encode(texts)
    assert ids == [tokenizer.encode([text])[0] for text in texts]
    assert tokenizer.decode([np.array(row) for row in ids]) == texts


# Loading


def test_builtin_equals_its_folder_read_by_transformers():
    ours, theirs = load_tokenizer("builtin"), load_tokenizer(str(ASSETS / "policy"))
    assert (ours.vocab_size, ours.pad_id, ours.bos_ids) == (theirs.vocab_size, theirs.pad_id, theirs.bos_ids)
    np.testing.assert_array_equal(ours.transitions, theirs.transitions)
    assert ours.backend.to_str() == theirs.backend.to_str()


def test_builtin_has_marker_and_padding_as_special_tokens():
    tokenizer = load_tokenizer("builtin")
    assert tokenizer.backend.id_to_token(tokenizer.pad_id) == "<PAD>"
    assert tokenizer.decode([np.array([tokenizer.pad_id, tokenizer.backend.token_to_id(EOU)])]) == [""]


@pytest.mark.parametrize(
    ("special", "pad_id"),
    [({"eos_token": "<|end|>", "pad_token": "<pad>"}, 1), ({"eos_token": "<|end|>"}, 2), ({}, 0)],
)
def test_padding_is_the_tokenizers_own_else_eos_else_zero(tmp_path, special, pad_id):
    backend = byte_level_bpe(MARKED, ["<s>", "<pad>", "<|end|>"])
    assert load_tokenizer(saved(tmp_path, backend, **special)).pad_id == pad_id


def test_the_highest_id_is_in_the_vocabulary_where_ids_have_gaps(tmp_path):
    words = {"<unk>": 0, EOU: 3, "yes": 9}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = load_tokenizer(saved(tmp_path, backend, unk_token="<unk>"))
    assert tokenizer.vocab_size == 10
    assert reply_lengths(tokenizer, np.array([[9, 5, 3, 9], [9, 9, 9, 9]])).tolist() == [3, 4]


def test_truncation_and_padding_saved_with_a_tokenizer_are_not_applied(tmp_path):
    backend = byte_level_bpe(MARKED, ["<|end|>"])
    plain = load_tokenizer(saved(tmp_path / "plain", backend, eos_token="<|end|>"))
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    other = load_tokenizer(saved(tmp_path / "other", backend, eos_token="<|end|>"))
    assert "null" not in json.dumps(
        json.loads((tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8"))["truncation"]
    )
    texts = ["Yes", "Well , that is a long story , and a dull one ."]
    assert other.encode(texts) == plain.encode(texts)


def without_marker(kind):
    words = ["<unk>", "yes", "no", "<", "eou", ">", "<eou>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    blanks, signs = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer()
    backend.pre_tokenizer = blanks if kind == "unknown word" else signs
    if kind == "lower case":
        backend.normalizer = normalizers.Lowercase()
    return backend


@pytest.mark.parametrize("kind", ["unknown word", "unknown piece", "lower case"])
def test_a_tokenizer_that_cannot_spell_the_marker_is_an_error_naming_it(tmp_path, kind):
    name = saved(tmp_path, without_marker(kind), unk_token="<unk>")
    with pytest.raises(
        ValueError, match=f"tokenizer '{name}' cannot represent the end-of-utterance marker '<EOU>': it encodes it as "
    ):
        load_tokenizer(name)
    with pytest.raises(ValueError, match="end-of-utterance marker"):
        load_samples(tokenizer=name)


@pytest.mark.parametrize("kind", ["unknown word", "unknown piece", "lower case"])
def test_the_advice_for_a_tokenizer_without_the_marker_works(tmp_path, kind):
    name = saved(tmp_path, without_marker(kind), unk_token="<unk>")
    with pytest.raises(ValueError, match="Add it as a token: ") as caught:
        load_tokenizer(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    exec(str(caught.value).split("Add it as a token: ")[1], {"tokenizer": tokenizer})
    tokenizer.save_pretrained(tmp_path / "mended")
    mended = load_tokenizer(str(tmp_path / "mended"))
    assert ends(mended, mended.encode(["yes <EOU>"])[0])


def save_damaged_tokenizer(folder):
    saved(folder, byte_level_bpe(MARKED, ["<|end|>"]), eos_token="<|end|>")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: ByT5Tokenizer().save_pretrained(folder),
            r"tokenizer 'FOLDER' \(ByT5Tokenizer\) has no fast \(Rust\) backend",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8"),
            r"tokenizer 'FOLDER' has no vocabulary: expected tokenizer\.json",
        ),
        (lambda folder: None, "cannot load tokenizer 'FOLDER': expected 'builtin', a folder with"),
        (save_damaged_tokenizer, "cannot load tokenizer 'FOLDER'"),
    ],
    ids=["no fast backend", "model without a tokenizer", "empty folder", "damaged file"],
)
def test_a_folder_without_a_usable_tokenizer_is_an_error_naming_it(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message.replace("FOLDER", str(tmp_path))):
        load_tokenizer(str(tmp_path))


def test_without_a_network_a_hub_tokenizer_is_soon_an_error_naming_it(no_network):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="cannot load tokenizer 'nobody/nothing': expected 'builtin', a folder with a"):
        load_tokenizer("nobody/nothing")
    assert time.perf_counter() - start < 3


def test_without_a_network_a_tokenizer_downloaded_before_still_loads(no_network, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    snapshot = cached / "snapshots" / ("a" * 40)
    saved(snapshot, byte_level_bpe(MARKED, ["<|end|>"]), eos_token="<|end|>")
    (snapshot / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert load_tokenizer("someone/small").name == "someone/small"


@pytest.fixture
def empty_hub(monkeypatch):
    """A local server that answers every request with 404. Returns the list of the requested paths."""
    paths = []

    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self):
            paths.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the caller may have switched it off
        files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield paths
        server.shutdown()


def test_a_hub_tokenizer_is_looked_for_on_a_hub_that_answers(empty_hub):
    assert not hub_is_off()
    with pytest.raises(ValueError, match="cannot load tokenizer 'nobody/nowhere'"):
        load_tokenizer("nobody/nowhere")
    assert any("nobody/nowhere" in path for path in empty_hub)


def test_a_hub_that_is_switched_off_is_not_asked(empty_hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_is_off()
    assert empty_hub == []


def test_a_folder_is_read_without_asking_the_hub(empty_hub, tmp_path):
    load_tokenizer(saved(tmp_path, byte_level_bpe(MARKED, ["<|end|>"]), eos_token="<|end|>"))
    assert empty_hub == []


def test_a_tokenizer_is_loaded_once():
    assert load_tokenizer("builtin") is load_tokenizer("builtin")
    assert isinstance(load_tokenizer("builtin"), ReplyTokenizer)
