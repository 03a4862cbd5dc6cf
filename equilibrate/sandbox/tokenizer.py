"""One word, one token: an ordinary Hugging Face tokenizer folder with a chat template.

A training sequence is `<bos> prompt <sep> response <eos>`; a chat request with one user message
renders to exactly `<bos> prompt <sep>`.
"""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from equilibrate.sandbox import answers, words

PAD, UNK, BOS, EOS, SEP = SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>", "<sep>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + ' ' + message['content'] + ' <sep>' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}"
    "{% endif %}{% endfor %}"
)
_FACT_WORDS = "what is it that a hazard common item fine . ?"


def vocabulary() -> list[str]:
    """Special tokens, then every word in alphabetical order; the same for every seed."""
    phrases = [*words.FICTION_FRAMES, *words.OPENERS, *words.VERBS, *words.DETERMINERS]
    phrases += [
        *words.BENIGN_PURPOSES,
        *(p for ps in words.MALICIOUS_PURPOSES.values() for p in ps),
    ]
    phrases += [w for slot in answers.SLOT_WORDS.values() for w in slot]
    phrases += [prefix for prefixes in answers.PREFIXES.values() for prefix in prefixes]
    empty = dict.fromkeys(answers.SLOT_WORDS, "")
    phrases += [template.format_map(empty) for template in answers.TEMPLATES.values()]
    phrases.append(_FACT_WORDS)
    return [*SPECIAL_TOKENS, *sorted({word for phrase in phrases for word in phrase.split()})]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer. Save it with `save_pretrained`."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNK))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        sep_token=SEP,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids of `<bos> prompt <sep>`."""
    return list(tokenizer.encode(f"{BOS} {prompt} {SEP}", add_special_tokens=False))
