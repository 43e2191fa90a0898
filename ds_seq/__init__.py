"""ds_seq: dense and Mixture-of-Experts sequence-to-sequence Transformers on DeepSpeed.

    import ds_seq

    model = ds_seq.load("runs/x")  # a run folder or an export
    model.translate(["Hello."], beam=5)

Names of the Python API are imported on first use, each from its own module, so that `import ds_seq`
is fast; see `ds_seq.api`.
"""

__version__ = "0.1.0"
__all__ = [
    "Averaged",
    "Checked",
    "CorpusScore",
    "Encoding",
    "ExperimentConfig",
    "Finding",
    "LearnedShortlist",
    "LexiconSize",
    "ModelCard",
    "PairExplanation",
    "RunCurves",
    "RunState",
    "TargetScore",
    "TextFigures",
    "TrainedModel",
    "TrainingResult",
    "Translation",
    "UserError",
    "average_models",
    "check",
    "compare_systems",
    "export",
    "fit",
    "learn_shortlist",
    "list_runs",
    "load",
    "prepare",
    "read_curves",
    "resolve",
    "score_translations",
    "verify",
    "__version__",
]

TYPE_CHECKING = False  # as in `typing`, without importing it
if TYPE_CHECKING:
    from ds_seq.api.experiments import check as check
    from ds_seq.api.experiments import fit as fit
    from ds_seq.api.experiments import prepare as prepare
    from ds_seq.api.experiments import resolve as resolve
    from ds_seq.api.folders import list_runs as list_runs
    from ds_seq.api.folders import read_curves as read_curves
    from ds_seq.api.folders import verify as verify
    from ds_seq.api.models import export as export
    from ds_seq.api.models import load as load
    from ds_seq.api.texts import compare_systems as compare_systems
    from ds_seq.api.texts import score_translations as score_translations
    from ds_seq.commands.average import Averaged as Averaged
    from ds_seq.commands.average import average_models as average_models
    from ds_seq.commands.check import Checked as Checked
    from ds_seq.commands.shortlist import LearnedShortlist as LearnedShortlist
    from ds_seq.commands.shortlist import LexiconSize as LexiconSize
    from ds_seq.commands.shortlist import learn_shortlist as learn_shortlist
    from ds_seq.config.experiment import ExperimentConfig as ExperimentConfig
    from ds_seq.errors import UserError as UserError
    from ds_seq.generation.answers import Encoding as Encoding
    from ds_seq.generation.answers import TargetScore as TargetScore
    from ds_seq.generation.answers import Translation as Translation
    from ds_seq.generation.explain import PairExplanation as PairExplanation
    from ds_seq.reports.curves import RunCurves as RunCurves
    from ds_seq.reports.run_state import RunState as RunState
    from ds_seq.runs.card import ModelCard as ModelCard
    from ds_seq.runs.perplexity import TextFigures as TextFigures
    from ds_seq.runs.verification import Finding as Finding
    from ds_seq.scores.scoring import CorpusScore as CorpusScore
    from ds_seq.trained_model import TrainedModel as TrainedModel
    from ds_seq.training.run import TrainingResult as TrainingResult
else:
    _PLACES = {
        "Averaged": "commands.average",
        "Checked": "commands.check",
        "CorpusScore": "scores.scoring",
        "Encoding": "generation.answers",
        "ExperimentConfig": "config.experiment",
        "Finding": "runs.verification",
        "LearnedShortlist": "commands.shortlist",
        "LexiconSize": "commands.shortlist",
        "ModelCard": "runs.card",
        "PairExplanation": "generation.explain",
        "RunCurves": "reports.curves",
        "RunState": "reports.run_state",
        "TargetScore": "generation.answers",
        "TextFigures": "runs.perplexity",
        "TrainedModel": "trained_model",
        "TrainingResult": "training.run",
        "Translation": "generation.answers",
        "UserError": "errors",
        "average_models": "commands.average",
        "check": "api.experiments",
        "compare_systems": "api.texts",
        "export": "api.models",
        "fit": "api.experiments",
        "learn_shortlist": "commands.shortlist",
        "list_runs": "api.folders",
        "load": "api.models",
        "prepare": "api.experiments",
        "read_curves": "api.folders",
        "resolve": "api.experiments",
        "score_translations": "api.texts",
        "verify": "api.folders",
    }

    def __getattr__(name):
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return vars(import_module(f"{__name__}.{_PLACES[name]}"))[name]
