"""Vectors of prompts: the hidden states of any model folder, averaged over the tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equilibrate.errors import DataError

MAX_TOKENS = 256
"""Of one prompt; what follows is not read."""
_CHUNK = 256
"""Prompts in one file of the cache: what an interruption loses at most."""
_BATCH = 16


class Embedder:
    """Averages the hidden states of two layers, and keeps the vectors on disk by content.

    An encoder such as MiniLM says most in its last layers, a model that predicts the next word in
    its middle: there the last layers already hold the word to come.

    Args:
        folder: `config.json`, `tokenizer.json` and safetensors, as transformers writes them.
        cache: folder for the vectors; made where it is missing.
    Raises: DataError where the folder is no such model.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: must hold {name}; give a model folder of transformers")
        self._folder = folder
        self._cache = cache
        self._model: Any = None
        self._tokenizer: Any = None
        self._layer = 0
        digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=8)
        for weights in sorted(folder.glob("*.safetensors")):
            # Size and time instead of content: gigabytes would be read for nothing.
            about = weights.stat()
            digest.update(f"{weights.name} {about.st_size} {about.st_mtime_ns}".encode())
        self._fingerprint = digest.hexdigest()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, 2 x hidden size], one row a text, in order."""
        if not texts:
            return np.zeros((0, 0), np.float32)
        chunks = [texts[at : at + _CHUNK] for at in range(0, len(texts), _CHUNK)]
        return np.concatenate([self._chunk(chunk) for chunk in chunks])

    def _chunk(self, texts: Sequence[str]) -> NDArray[np.float32]:
        content = f"{self._fingerprint} {json.dumps(list(texts))}".encode()
        name = hashlib.blake2b(content, digest_size=16).hexdigest()
        file = self._cache / f"{name}.npy"
        if file.is_file():
            kept: NDArray[np.float32] = np.load(file, allow_pickle=False)
            return kept
        vectors = self._embed(texts)
        self._cache.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        with unfinished.open("wb") as out:
            np.save(out, vectors)
        unfinished.replace(file)
        return vectors

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._model is None:
            self._load()
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        result: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(texts)
        # Texts of like length together: little padding.
        order = sorted(range(len(texts)), key=lambda row: len(encoded[row]))
        for at in range(0, len(order), _BATCH):
            rows = order[at : at + _BATCH]
            for row, vector in zip(rows, self._vectors([encoded[r] for r in rows]), strict=True):
                result[row] = vector
        return np.stack(result)

    def _vectors(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import torch

        length = max(1, max(map(len, ids)))
        tokens = torch.zeros(len(ids), length, dtype=torch.long)
        mask = torch.zeros(len(ids), length, dtype=torch.long)
        for row, some in enumerate(ids):
            tokens[row, : len(some)] = torch.tensor(some, dtype=torch.long)
            # A text without a token still needs one that is attended to.
            mask[row, : max(1, len(some))] = 1
        with torch.no_grad():
            output = self._model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        layers = output.hidden_states[self._layer - 1 : self._layer + 1]
        hidden = torch.cat(layers, dim=-1).float()
        kept = mask[:, :, None].bool()
        total = torch.where(kept, hidden, 0.0).sum(dim=1)
        vectors: NDArray[np.float32] = (total / mask.sum(dim=1, keepdim=True)).numpy()
        return vectors

    def _load(self) -> None:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        try:
            self._model = AutoModel.from_pretrained(
                self._folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            ).eval()
            self._tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"{self._folder}: no model that gives vectors ({reason})") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        layers = int(self._model.config.num_hidden_layers)
        is_encoder = not any("CausalLM" in name for name in self._model.config.architectures or ())
        self._layer = layers if is_encoder else max(1, layers // 2)
