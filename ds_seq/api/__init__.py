"""The Python interface of ds_seq: functions that do what the commands do.

    model = ds_seq.load("runs/x")  # a run folder or an export
    model.translate(["Hello.", "Goodbye."], beam=5)
    model.translate("Hello.", n_best=3)  # [Translation(text, score), ...]
    model.translate("Hello.", target_lang="fr")  # by a model of several languages
    model.score(["Hello."], ["Hallo."])  # [TargetScore(log_prob, token_scores, score)]

    ds_seq.prepare("my.yaml")
    result = ds_seq.fit("my.yaml", "train.max_updates=1000")
    ds_seq.load(result.folder)

A function and its command call the same code. `ds_seq.__getattr__` imports the module of a function
on first use, so that looking at runs or checking an experiment does not wait for torch.
"""
