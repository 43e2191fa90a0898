"""Dense models for CTranslate2, for `ds-seq export --format ctranslate2`.

`support` says which models CTranslate2 has, `converter` fills its specification, `comparison`
compares the result with the model, and `usage` shows how to translate with it.
"""
