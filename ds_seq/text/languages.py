"""What a language code says: the language itself, and the letters in which it is written.

Codes come in many forms: `de`, `deu`, `de_DE`, `deu_Latn` (NLLB), `zh-Hant`. They are compared by
their language alone, and in the two letters of ISO 639-1 where there are any.
"""

from __future__ import annotations

import re
from functools import cache

# ISO 639-2 and 639-3 -> ISO 639-1, and codes of varieties that libraries tell apart
_TWO_LETTERS = {
    long: short
    for short, longs in (
        entry.split(":")
        for entry in (
            "af:afr ak:aka,twi am:amh ar:ara,arb,acm,acq,aeb,ajp,apc,ars,ary,arz as:asm "
            "az:aze,azj,azb ba:bak be:bel bg:bul bm:bam bn:ben bo:bod,tib br:bre bs:bos ca:cat "
            "ceb:ceb co:cos cs:ces,cze cy:cym,wel da:dan de:deu,ger dz:dzo ee:ewe el:ell,gre "
            "en:eng eo:epo es:spa et:est,ekk eu:eus,baq fa:fas,per,pes,prs ff:ful,fuv fi:fin "
            "fj:fij fo:fao fr:fra,fre fy:fry ga:gle gd:gla gl:glg gn:grn gu:guj ha:hau he:heb,iw "
            "hi:hin hr:hrv ht:hat hu:hun hy:hye,arm id:ind,in ig:ibo is:isl,ice it:ita "
            "ja:jpn jv:jav,jw ka:kat,geo kg:kon ki:kik kk:kaz km:khm kn:kan ko:kor ku:kur,kmr "
            "ky:kir la:lat lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lv:lav,lvs mg:mlg,plt "
            "mi:mri,mao mk:mkd,mac ml:mal mn:mon,khk mr:mar ms:msa,may,zsm mt:mlt my:mya,bur "
            "nb:nob ne:nep,npi nl:nld,dut nn:nno no:nor ny:nya oc:oci om:orm,gaz or:ori,ory "
            "os:oss pa:pan pl:pol ps:pus,pbt pt:por qu:que,quy rn:run ro:ron,rum,mo ru:rus "
            "rw:kin sa:san sc:srd sd:snd sg:sag sh:hbs si:sin sk:slk,slo sl:slv sm:smo sn:sna "
            "so:som sq:sqi,alb,als sr:srp ss:ssw st:sot su:sun sv:swe sw:swa,swh ta:tam te:tel "
            "tg:tgk th:tha ti:tir tk:tuk tl:tgl,fil tn:tsn to:ton tr:tur ts:tso tt:tat ug:uig "
            "uk:ukr ur:urd uz:uzb,uzn vi:vie wo:wol xh:xho yi:yid,ydd,ji yo:yor zh:zho,chi,cmn "
            "zu:zul"
        ).split()
    )
    for long in longs.split(",")
}

_RANGES = {  # of letters and the signs that belong to them, by the code of ISO 15924
    "Latn": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02b8\u1d00-\u1eff\u2c60-\u2c7f"
    "\ua722-\ua7ff\ufb00-\ufb06\u0300-\u036f",
    "Cyrl": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f\u0300-\u036f",
    "Grek": "\u0370-\u03ff\u1f00-\u1fff\u0300-\u036f",
    "Armn": "\u0531-\u058a\ufb13-\ufb17",
    "Geor": "\u10a0-\u10ff\u1c90-\u1cbf\u2d00-\u2d2f",
    "Hebr": "\u0591-\u05f4\ufb1d-\ufb4f",
    "Arab": "\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06d5-\u06ef\u06fa-\u06ff\u0750-\u077f"
    "\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufefe\u200c",
    "Deva": "\u0900-\u0963\u0971-\u097f\ua8e0-\ua8ff\u200c\u200d",
    "Beng": "\u0980-\u09e3\u09f0\u09f1\u200c\u200d",
    "Guru": "\u0a00-\u0a65\u0a70-\u0a76",
    "Gujr": "\u0a80-\u0ae3\u0af9-\u0aff",
    "Orya": "\u0b00-\u0b63\u0b71\u200c\u200d",
    "Taml": "\u0b80-\u0be5",
    "Telu": "\u0c00-\u0c63\u200c\u200d",
    "Knda": "\u0c80-\u0ce3\u200c\u200d",
    "Mlym": "\u0d00-\u0d63\u0d7a-\u0d7f\u200c\u200d",
    "Sinh": "\u0d80-\u0de5\u0df2\u0df3\u200c\u200d",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
    "Laoo": "\u0e81-\u0ece\u0edc-\u0edf",
    "Tibt": "\u0f00\u0f0b\u0f18\u0f19\u0f35-\u0fbc",
    "Mymr": "\u1000-\u103f\u1050-\u108f\ua9e0-\ua9ef\uaa60-\uaa7f",
    "Khmr": "\u1780-\u17d3\u17d7\u17dc\u17dd",
    "Ethi": "\u1200-\u1360\u1380-\u139f\u2d80-\u2ddf\uab00-\uab2f",
    "Mong": "\u1820-\u18af",
    "Tfng": "\u2d30-\u2d7f",
    "Olck": "\u1c5a-\u1c7d",
    "Mtei": "\uabc0-\uabed\uaae0-\uaaf6",
    "Thaa": "\u0780-\u07bf",
    "Cher": "\u13a0-\u13ff\uab70-\uabbf",
    "Hani": "\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff",
    "Kana": "\u3031-\u3035\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Bopo": "\u3105-\u312f\u31a0-\u31bf",
    "Hang": "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff",
}
_SAME = {  # scripts that are made of others
    "Hans": "Hani", "Hant": "Hani", "Jpan": "Hani Kana", "Hira": "Kana", "Hrkt": "Kana",
    "Kore": "Hang Hani", "Hanb": "Hani Bopo",
}  # fmt: skip
_WRITTEN_IN = {  # languages that are not written in Latin letters, or not only
    language: scripts
    for scripts, languages in {
        "Cyrl": "ru uk be bg mk kk ky tg mn tt ba cv os ab ce udm sah kv mhr mrj myv mdf bxr xal "
        "av kbd ady lez krc kum nog tyv alt kjh chm rue",
        "Cyrl Latn": "sr sh bs cnr uz",
        "Grek": "el grc",
        "Armn": "hy hyw",
        "Geor": "ka xmf",
        "Hebr": "he yi lad",
        "Arab": "ar fa ur ps ug sd ckb glk mzn pnb skr lrc bal",
        "Arab Latn": "ku az ks ms",
        "Deva": "hi mr ne sa mai bho awa mag hne new gom doi brx",
        "Beng": "bn as bpy",
        "Guru Arab": "pa",
        "Gujr": "gu",
        "Orya": "or",
        "Taml": "ta",
        "Telu": "te",
        "Knda": "kn tcy",
        "Mlym": "ml",
        "Sinh": "si",
        "Thai": "th nod tts",
        "Laoo": "lo",
        "Tibt": "bo dz",
        "Mymr": "my shn mnw",
        "Khmr": "km",
        "Ethi": "am ti tig",
        "Tfng Latn": "tzm zgh ber",
        "Olck": "sat",
        "Mtei Beng": "mni",
        "Thaa": "dv div",
        "Cher": "chr",
        "Hani Bopo": "zh yue wuu gan hak lzh",
        "Hani Kana": "ja",
        "Hang Hani": "ko",
    }.items()
    for language in languages.split()
}


def _tags(code: str) -> list[str]:
    return re.findall("[a-z0-9]+", code.lower()) or [""]


def primary_language(code: str) -> str:
    """Return the language of a code without script and region, in two letters if there are any."""
    first = _tags(code)[0]
    return _TWO_LETTERS.get(first, first)


@cache
def letters(code: str) -> str:
    """Return the letters of a language as the inside of a character class of `re`.

    They are those of the script that the code names, or else of those in which the language is
    written; Latin letters where nothing else is known.
    """
    named = [tag.title() for tag in _tags(code)[1:3] if len(tag) == 4 and tag.isalpha()]
    scripts = _SAME.get(named[0], named[0]).split() if named else []
    if not scripts or any(script not in _RANGES for script in scripts):
        scripts = _WRITTEN_IN.get(primary_language(code), "Latn").split()
    return "".join(_RANGES[script] for script in scripts)
