"""What metrics need to know of a language: how its text is split into words.

Language codes come in many forms: `zh`, `zho`, `zh_CN`, `zh-Hant`, `cmn`, `zho_Hans` (NLLB),
`ja_XX` (mBART), `Chinese`. The same function serves all metrics and filters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ds_seq.text.scripts import lacks_spaces

DEFAULT_TOKENIZER = "13a"
"""sacreBLEU's tokenizer for languages whose words are separated by spaces."""
_CHINESE, _JAPANESE, _KOREAN, _CHARACTERS = "zh", "ja-mecab", "ko-mecab", "char"

# ISO 639-1, 639-2 and 639-3 codes and English names. `cn`, `jp`, `kh` and `mm` are countries' codes
# and of no language, but often seen. `zhs` ... `cht` are those of Windows.
_LANGUAGES = {
    _CHINESE: "zh zho chi cmn yue wuu gan hak nan hsn cdo cjy cnp cpx csp czh czo mnp lzh och ltc "
    "cn zhs zht chs cht chinese mandarin cantonese",
    _JAPANESE: "ja jpn jp ojp ryu xug mvi japanese",
    _KOREAN: "ko kor jje okm oko korean",
    # Thai, Northern Thai, Isan, Southern Thai; Lao; Khmer; Burmese, Shan, Mon, Rakhine, Khamti,
    # Karen; Lü, Tai Nüa, Tai Dam; Tibetan, Dzongkha, Ladakhi, Sikkimese
    _CHARACTERS: "th tha thai nod tts sou lo lao km khm kh khmer my mya bur mm burmese myanmar shn "
    "mnw rki kht kar ksw pwo blk kjp khb tdd blt bo bod tib tibetan dz dzo dzongkha lbj sip",
}
_SCRIPTS = {  # ISO 15924
    _CHINESE: "hans hant hani hanb bopo",
    _JAPANESE: "jpan hira kana hrkt",
    _KOREAN: "kore hang jamo",
    _CHARACTERS: "thai laoo khmr mymr tibt lana tale talu tavt java bali",
}


def _inverted(table: dict[str, str]) -> dict[str, str]:
    return {code: tokenizer for tokenizer, codes in table.items() for code in codes.split()}


_BY_LANGUAGE, _BY_SCRIPT = _inverted(_LANGUAGES), _inverted(_SCRIPTS)


def bleu_tokenizer(language: str) -> str:
    """Return the name of sacreBLEU's tokenizer for a language.

    These are sacreBLEU's own choices for Chinese, Japanese and Korean. Other languages whose words
    are not separated by spaces are compared by characters; all others have the default, `13a`.

    Args:
        language: language code, with a script or a country if any; empty if unknown.
    """
    primary, *subtags = re.findall("[a-z0-9]+", language.lower()) or [""]
    script = next((tag for tag in subtags[:2] if len(tag) == 4 and tag.isalpha()), None)
    by_script = DEFAULT_TOKENIZER if script is None else _BY_SCRIPT.get(script, DEFAULT_TOKENIZER)
    if script is not None and by_script == DEFAULT_TOKENIZER:
        return DEFAULT_TOKENIZER  # such as Chinese in Latin letters
    named = [_BY_LANGUAGE[tag] for tag in subtags if len(tag) > 3 and tag in _BY_LANGUAGE]
    return _BY_LANGUAGE.get(primary, named[0] if named else by_script)  # "Simplified Chinese"


def is_english(language: str) -> bool:
    """Return whether a language code means English."""
    return re.split("[^a-z]", language.lower())[0] in ("en", "eng", "english")


def language_warning(lines: Iterable[str], language: str) -> str | None:
    """Return a warning if a text cannot be in a language whose words are separated by spaces."""
    if bleu_tokenizer(language) != DEFAULT_TOKENIZER or not lacks_spaces(lines):
        return None
    code = f"language {language!r}" if language else "an unknown language"
    return (
        f"has no spaces between words, but is scored as text in {code}: BLEU compares whole "
        "sentences; give the code of the language, such as zh, ja or th"
    )
