"""A user's notes on risks, and which of them concern a prompt: in-process, in any language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from equilibrate.data.readers import read_rows
from equilibrate.data.records import checked, has, text
from equilibrate.data.rows import RejectedRows, prompt_key, shown
from equilibrate.errors import DataError
from equilibrate.fdc.classifier import require_library

Notes = Mapping[str, str]
"""Id -> text."""

PLAIN_TEXT = (".txt", ".md")
"""Endings of files whose paragraphs are notes."""
_BREAK = re.compile(
    r"\n\s*\n|^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$", re.MULTILINE
)
"""Between paragraphs: an empty line, or one that Markdown draws as a rule."""
_HEADINGS = re.compile(r"(?:\s*#{1,6}(?:[ \t].*)?)+|.*\n=+")
"""A paragraph of Markdown that only says what the next ones are about."""
FLOOR = 0.17
LONG = 0.2
"""A note concerns a prompt of N pieces if cosine x N^LONG is at least FLOOR: a cosine alone falls
with the root of all else that a prompt says. Chosen on invented notes and prompts in English,
Chinese, Russian and Japanese; `docs/fdc.md` has the figures."""
_BLOCK = 256
"""Prompts whose cosines are held at once."""

# Thai, Lao, Burmese, Khmer, kana, Chinese and Hangul: words of a few characters, mostly without
# spaces between them.
_DENSE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]"
)
_COMMON_WORDS = frozenset(
    """
a about above after again against all also always am an and another any anyone anything are around
as ask at away back be because been before being below best better between both but by can cannot
come could did do does doing done down during each either else enough even ever every everybody
everyone everything first for from get give go goes going good got had has have having he help her
here hers him his how however i if in into is it its itself just keep know last least less let
like little long look made make many may me might more most much must my myself need never new
next no nobody none nor not nothing now of off often on once one only or other others our ours out
over own part people perhaps please put quite rather really right said same say see seem several
shall she should since so some somebody someone something soon still such take tell than that the
their them themselves then there these they thing things think this those though through time to
today together told too two under until up upon us use used very want wants was way we went were
what whatever when whenever where which while who whoever whole whom whose why will with within
without would yes yet you your yours yourself
без более больше будем будет будто буду бы был была были было быть вам вами вас ваш вдруг ведь
весь во вот впрочем все всегда всего всей всем всеми всех всю всё вы где да даже два для до другой
его ее ей ему если есть еще ещё её же за зачем здесь из или им ими иногда их как какая какие какой
какую когда конечно которая которого которой которую которые который которых кто куда ли лучше
между меня мне много может можно мои мой моя моё мы на над надо нам нами нас наш наше наши не него
нее ней нельзя нет неё ни нибудь никогда ним них ничего но ну нужно об один одна одни одно он она
они оно опять от ответь очень перед по под подскажите пожалуйста после потом потому почему почти
при про просто раз разве с сам сама сами своего своей свой свою себе себя сейчас со совсем так
такая также такие такое такой там те тебе тебя тем теперь то тобой тогда того тоже той только том
тот три тут ты уж уже хорошо хоть хочу чего чей чем через что чтоб чтобы чуть эта эти этих это
этого этой этом этот эту я
""".split()  # noqa: RUF001, SIM905
)
_COMMON_CHARACTERS = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之"
    "年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样"
    "理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将"
    "两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信"
    "表化老给世位次度门任常先通教儿原东声提立及比员解名真论处走义各入几口认条平系题活尔更别打"
    "女变四神总何数安少报才结反受目太量再感建务做接必场件计管期市直请吗呢吧啊您怎哪谁电"
)
"""Words that say nothing of a subject, and Chinese characters of which two together mostly do not.
How few notes there are, their frequencies cannot tell: in twelve notes most words stand once."""
_SIZES = {False: (4, 5), True: (1, 2)}
"""Characters in a piece of a word, and of one in such a script."""


def read_notes(file: Path) -> tuple[Notes, int]:
    """The notes of a file, and how many were copies of an earlier one.

    Of plain text each paragraph is a note, with its number as id, headings and rules of Markdown
    aside; of any other file each row, by `text` and `id` (a row without one has its number).

    Raises: DataError naming the rows that hold no text, or an id that names two notes; or if the
        file cannot be read, or has no note.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    rejected = RejectedRows(file)
    num_rows = 0
    is_plain = file.suffix.lower() in PLAIN_TEXT
    for num_rows, (where, row) in enumerate(_paragraphs(file) if is_plain else read_rows(file), 1):
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(f"({shown(row)}) must be an object with `text`")
            name, note = _note(row, str(num_rows))
            if (key := prompt_key(note)) in seen:
                continue
            if name in found:
                what = "id" if has(row, "id") else "its number"
                raise DataError(
                    f"{what} ({shown(name)}) names an earlier note with another text; give each "
                    "note an id of its own"
                )
        except DataError as error:
            rejected.add(where, str(error))
            continue
        seen.add(key)
        found[name] = note
    rejected.settle(num_rows)
    if not found:
        raise DataError(
            f"{file} must hold notes: rows with `text` (and `id`), or paragraphs in a file that "
            f"ends in {' or '.join(PLAIN_TEXT)}"
        )
    return found, num_rows - len(found)


def _note(row: Mapping[str, Any], number: str) -> tuple[str, str]:
    name = checked(str(row["id"]), "id") if has(row, "id") else number
    return name, text(row, "text").strip()


def _paragraphs(file: Path) -> Iterator[tuple[str, object]]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{file}: must be UTF-8 text") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    parts = (part.strip() for part in _BREAK.split(content))
    notes = (part for part in parts if part and not _HEADINGS.fullmatch(part))
    for number, part in enumerate(notes, 1):
        yield f"{file}: paragraph {number}", {"text": part}


class Retriever:
    """The nearest notes of a prompt, by TF-IDF of the pieces of their words, common ones aside.

    Pieces are hashed and not looked up among those of the notes: a prompt whose words stand in none
    of them would else be measured by its few common ones, and be near to all.

    Raises: ResourceError without scikit-learn.
    """

    def __init__(self, notes: Notes) -> None:
        require_library("finds the notes of a prompt")
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._names = list(notes)
        self._pieces = HashingVectorizer(
            analyzer=_pieces, norm=None, alternate_sign=False, n_features=2**20
        )
        self._weights = TfidfTransformer()
        self._notes = self._weights.fit_transform(self._pieces.transform(notes.values()))

    def find(self, texts: Sequence[str], num_notes: int) -> Iterator[list[str]]:
        """Ids of at most `num_notes` notes for each text, the nearest first; none below FLOOR."""
        waiting = iter(texts)
        while block := list(islice(waiting, _BLOCK)):
            counts = self._pieces.transform(block)
            cosines = (self._weights.transform(counts) @ self._notes.T).toarray()
            for row in cosines * np.asarray(counts.sum(axis=1)) ** LONG:
                # Of equal ones the first.
                order = np.argsort(-row, kind="stable")[:num_notes]
                yield [self._names[place] for place in order if row[place] >= FLOOR]


def _pieces(content: str) -> list[str]:
    found: list[str] = []
    for word in re.findall(r"\w+", content.casefold()):
        is_dense = _DENSE.search(word) is not None
        if word in _COMMON_WORDS or (len(word) == 1 and not is_dense):
            continue
        whole = word if is_dense else f" {word} "
        low, high = _SIZES[is_dense]
        for size in range(low, high + 1):
            pieces = (whole[at : at + size] for at in range(max(1, len(whole) - size + 1)))
            found += (piece for piece in pieces if not _COMMON_CHARACTERS.issuperset(piece))
    return found
