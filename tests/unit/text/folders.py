"""Eight model folders whose tokenizers and templates are as unlike as those people bring."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from equilibrate.sandbox.tokenizer import build_tokenizer
from equilibrate.text.renderer import Renderer

CORPUS = (
    "how do i clean the lamp ? what is a lamp ? it is fine . that is a common item .",
    "you are a kind and helpful assistant . answer in a few words . thank you very much .",
    "user assistant system human end of turn begin start text im header id s bos eos inst",
    "Today is the first day . Cutting Knowledge Date : December 2023 . Hello World 0 1 2 3",
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nyou are a kind assistant .<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday is "
    "{{ strftime_now('%d %b %Y') }}<|eot_id|>" + LLAMA_3.removeprefix("{{ bos_token }}")
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set begin = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set begin = '' %}{% set turns = messages %}"
    "{% endif %}{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (begin if loop.first else '') }}"
    "{{ m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HEADINGS = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@cache
def world_renderer() -> Renderer:
    """Of the built-in world."""
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer().save_pretrained(folder)
        return Renderer(folder)


@cache
def byte_level() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


@cache
def _pieces() -> tuple[str, ...]:
    """Characters and words of the corpus as SentencePiece writes them, then the 256 bytes."""
    words = sorted({f"▁{word}" for line in CORPUS for word in line.split()})
    characters = sorted({c for word in words for c in word} | set("</>|_[]#"))
    return (*characters, *(w for w in words if len(w) > 1), *(f"<0x{b:02X}>" for b in range(256)))


def unigram() -> Tokenizer:
    """SentencePiece's newer form; its control tokens are pieces of the vocabulary."""
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocabulary += [(piece, -2.0 if len(piece) == 1 else -4.0) for piece in _pieces()]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def metaspace_bpe(control: tuple[str, ...], *, legacy: bool) -> Tokenizer:
    """SentencePiece's BPE: a space before each text (legacy) or before none; merges that spell a
    control token are among the others."""
    pieces = [*control, *_pieces()]
    words = [*control[:3], *(piece for piece in _pieces() if piece.startswith("▁"))]
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if (word[: end - 1], word[end - 1]) not in merges:
                merges.append((word[: end - 1], word[end - 1]))
    pieces += [left + right for left, right in merges]
    pieces += [c for word in control[:3] for c in word]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if legacy else replace
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def _save(folder: Path, backend: Tokenizer, template: str | None, eos: list[int] | int, **names):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **names
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))


def _byte_level(folder: Path, template: str, special: list[str], added: list[str], **names) -> None:
    backend = Tokenizer.from_str(byte_level())
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    eos = backend.token_to_id(names["eos_token"])
    _save(folder, backend, template, eos, **names)


def _chatml(template: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        _byte_level(
            folder,
            template,
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            ["<think>", "</think>", "<tool_call>"],
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        )

    return write


def _llama_3(template: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        # The turn's markers are added tokens, and none of them is declared special.
        _byte_level(
            folder,
            template,
            ["<|begin_of_text|>", "<|end_of_text|>"],
            ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            bos_token="<|begin_of_text|>",
            eos_token="<|end_of_text|>",
        )
        file = folder / "generation_config.json"
        ends = PreTrainedTokenizerFast.from_pretrained(folder).convert_tokens_to_ids
        file.write_text(json.dumps({"eos_token_id": ends(["<|end_of_text|>", "<|eot_id|>"])}))

    return write


def _pad_is_eos(folder: Path) -> None:
    end = "<|endoftext|>"
    names = {"bos_token": end, "eos_token": end, "pad_token": end, "unk_token": end}
    _byte_level(folder, HEADINGS, [end], ["  ", "    ", "<|padding|>"], **names)


def _sentencepiece(folder: Path) -> None:
    _save(folder, unigram(), LLAMA_2, 2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _no_template(folder: Path) -> None:
    backend = metaspace_bpe(("<unk>", "<s>", "</s>"), legacy=True)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _save(folder, backend, None, 2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _several_eos(folder: Path) -> None:
    control = ("<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
    backend = metaspace_bpe(control, legacy=False)
    names = {name.strip("<>") + "_token": name for name in control[:4]}
    _save(folder, backend, GEMMA, [2, 5], **names, extra_special_tokens=list(control[4:]))


FOLDERS: dict[str, Callable[[Path], None]] = {
    "chatml": _chatml(CHATML),
    "llama_3": _llama_3(LLAMA_3),
    "sentencepiece": _sentencepiece,
    "no_template": _no_template,
    "default_system": _chatml(DEFAULT_SYSTEM),
    "dated": _llama_3(DATED),
    "pad_is_eos": _pad_is_eos,
    "several_eos": _several_eos,
}
TAKES_NO_SYSTEM = ("several_eos",)
