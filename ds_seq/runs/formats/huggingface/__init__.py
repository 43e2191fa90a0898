"""Models of Hugging Face folders, read and written without `transformers`.

`families` says which model of ds_seq a `config.json` describes and where its tensors are, `mapping`
turns tensors into ours and back, `folder` reads the files, and `importing` makes a run of them.
"""
