"""fairseq's side of fairseq_parity.py: fairseq's own generator on given weights.

Runs in the virtual environment that `fairseq_venv` creates; usage: parity_fairseq_side.py FOLDER.
Reads job.json and weights.safetensors in it (written by `parity_sides.Fairseq`) and writes
answer.json.

Shapes: B sentences, S source length, T target length with its end symbol.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

from fairseq_side import make_dictionary


def build(job: dict[str, Any], weights: Path) -> tuple[Any, Any]:
    """Return fairseq's model, in evaluation mode, and its dictionary."""
    import torch
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.tasks.translation import TranslationTask
    from safetensors.torch import load_file

    words = ["unused", "--cpu", "--task", "translation", "--arch", "transformer", *job["flags"]]
    arguments = options.parse_args_and_arch(options.get_training_parser(), input_args=words)
    config = convert_namespace_to_omegaconf(arguments)
    dictionary = make_dictionary(job["vocab_size"])
    model = TranslationTask(config.task, dictionary, dictionary).build_model(config.model)
    model.load_state_dict(load_file(weights), strict=True)
    for stack in (model.encoder, model.decoder):
        positions = stack.embed_positions
        if hasattr(positions, "weights"):  # fixed rows, which count from 0 at the first position
            rows = positions.get_embedding(*positions.weights.shape, None)
            unused = torch.zeros(job["first_position"], rows.size(1))
            positions.weights = torch.cat([unused, rows])
    return model.eval().to(torch.float64 if job["double"] else torch.float32), dictionary


def search(
    model: Any, dictionary: Any, job: dict[str, Any], beam: int, length_penalty: float
) -> list[Any]:
    """Return `[tokens, score]` of every hypothesis of every sentence, batch by batch."""
    import torch
    from fairseq.sequence_generator import SequenceGenerator

    generator = SequenceGenerator(
        [copy.deepcopy(model)],  # the generator sets the beam size of its model permanently
        dictionary,
        beam_size=beam,
        max_len_a=job["max_len_a"],
        max_len_b=job["max_len_b"],
        len_penalty=length_penalty,
        tokens_to_suppress=["<s>"] if job["without_begin"] else [],
    )
    found = []
    for batch in job["batches"]:
        src = torch.tensor(batch)  # (B, S), no padding: all sources of a batch have the same length
        lengths = torch.full((len(batch),), src.size(1))
        sample = {"net_input": {"src_tokens": src, "src_lengths": lengths}}
        for hypotheses in generator.generate([model], sample):
            found.append([[h["tokens"].tolist()[:-1], float(h["score"])] for h in hypotheses])
    return found


def force(model: Any, dictionary: Any, source: list[int], target: list[int]) -> list[float]:
    """Return the log-probability of every token (T,) of a target that ends."""
    import torch

    src, tgt = torch.tensor([source]), torch.tensor([target])
    shifted = torch.cat([torch.tensor([[dictionary.eos()]]), tgt[:, :-1]], dim=1)
    with torch.no_grad():
        output = model(src, torch.tensor([len(source)]), shifted)
        log_probs = model.get_normalized_probs(output, log_probs=True)
    scores: list[float] = log_probs.gather(2, tgt[:, :, None]).flatten().tolist()
    return scores


def main() -> None:
    """Execute the job in a folder."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    import fairseq
    import torch

    torch.set_num_threads(job["threads"])
    model, dictionary = build(job, folder / "weights.safetensors")
    found, seconds = [], []
    for beam, length_penalty in job["settings"]:
        start = time.perf_counter()
        found.append(search(model, dictionary, job, beam, length_penalty))
        seconds.append(time.perf_counter() - start)
        print(f"fairseq: beam {beam}, lenpen {length_penalty}: {seconds[-1]:.1f} s", flush=True)
    forced = [force(model, dictionary, source, target) for source, target in job["forced"]]
    versions = f"fairseq {fairseq.__version__}, torch {torch.__version__}"
    answer = {"found": found, "forced": forced, "seconds": seconds, "versions": versions}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
