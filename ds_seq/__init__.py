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
    "ExpertLoads",
    "Finding",
    "ImportedRun",
    "Languages",
    "LearnedShortlist",
    "LexiconSize",
    "MadeStudent",
    "MeasuredPairs",
    "ModelCard",
    "PairExplanation",
    "PrunedExperts",
    "PrunedHeads",
    "Recipe",
    "RunCurves",
    "RunState",
    "ServerApp",
    "ServerQueue",
    "TargetScore",
    "TextFigures",
    "TextFiles",
    "TrainedModel",
    "TrainingResult",
    "Translation",
    "UserError",
    "average_models",
    "build_server",
    "check",
    "compare_systems",
    "expert_loads",
    "export",
    "fit",
    "import_fairseq",
    "import_huggingface",
    "learn_shortlist",
    "list_recipes",
    "list_runs",
    "load",
    "make_student",
    "prepare",
    "prune_experts",
    "prune_heads",
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
    from ds_seq.api.folders import list_recipes as list_recipes
    from ds_seq.api.folders import list_runs as list_runs
    from ds_seq.api.folders import read_curves as read_curves
    from ds_seq.api.folders import verify as verify
    from ds_seq.api.models import export as export
    from ds_seq.api.models import load as load
    from ds_seq.api.texts import compare_systems as compare_systems
    from ds_seq.api.texts import score_translations as score_translations
    from ds_seq.commands.arguments.serve import ServerQueue as ServerQueue
    from ds_seq.commands.arguments.shortlist import LexiconSize as LexiconSize
    from ds_seq.commands.average import Averaged as Averaged
    from ds_seq.commands.average import average_models as average_models
    from ds_seq.commands.calibration import MeasuredPairs as MeasuredPairs
    from ds_seq.commands.calibration import TextFiles as TextFiles
    from ds_seq.commands.check import Checked as Checked
    from ds_seq.commands.import_model import ImportedRun as ImportedRun
    from ds_seq.commands.import_model import import_fairseq as import_fairseq
    from ds_seq.commands.import_model import import_huggingface as import_huggingface
    from ds_seq.commands.make_student import MadeStudent as MadeStudent
    from ds_seq.commands.make_student import make_student as make_student
    from ds_seq.commands.moe_stats import ExpertLoads as ExpertLoads
    from ds_seq.commands.moe_stats import expert_loads as expert_loads
    from ds_seq.commands.prune_experts import PrunedExperts as PrunedExperts
    from ds_seq.commands.prune_experts import prune_experts as prune_experts
    from ds_seq.commands.prune_heads import PrunedHeads as PrunedHeads
    from ds_seq.commands.prune_heads import prune_heads as prune_heads
    from ds_seq.commands.serve import ServerApp as ServerApp
    from ds_seq.commands.serve import build_server as build_server
    from ds_seq.commands.shortlist import LearnedShortlist as LearnedShortlist
    from ds_seq.commands.shortlist import learn_shortlist as learn_shortlist
    from ds_seq.config.experiment import ExperimentConfig as ExperimentConfig
    from ds_seq.config.shipped import Recipe as Recipe
    from ds_seq.errors import UserError as UserError
    from ds_seq.generation.answers import Encoding as Encoding
    from ds_seq.generation.answers import TargetScore as TargetScore
    from ds_seq.generation.answers import Translation as Translation
    from ds_seq.generation.explain import PairExplanation as PairExplanation
    from ds_seq.reports.curves import RunCurves as RunCurves
    from ds_seq.reports.run_state import RunState as RunState
    from ds_seq.runs.card import ModelCard as ModelCard
    from ds_seq.runs.formats.huggingface.importing import Languages as Languages
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
        "ExpertLoads": "commands.moe_stats",
        "Finding": "runs.verification",
        "ImportedRun": "commands.import_model",
        "Languages": "runs.formats.huggingface.importing",
        "LearnedShortlist": "commands.shortlist",
        "LexiconSize": "commands.arguments.shortlist",
        "MadeStudent": "commands.make_student",
        "MeasuredPairs": "commands.calibration",
        "ModelCard": "runs.card",
        "PairExplanation": "generation.explain",
        "PrunedExperts": "commands.prune_experts",
        "PrunedHeads": "commands.prune_heads",
        "Recipe": "config.shipped",
        "RunCurves": "reports.curves",
        "RunState": "reports.run_state",
        "ServerApp": "commands.serve",
        "ServerQueue": "commands.arguments.serve",
        "TargetScore": "generation.answers",
        "TextFigures": "runs.perplexity",
        "TextFiles": "commands.calibration",
        "TrainedModel": "trained_model",
        "TrainingResult": "training.run",
        "Translation": "generation.answers",
        "UserError": "errors",
        "average_models": "commands.average",
        "build_server": "commands.serve",
        "check": "api.experiments",
        "compare_systems": "api.texts",
        "expert_loads": "commands.moe_stats",
        "export": "api.models",
        "fit": "api.experiments",
        "import_fairseq": "commands.import_model",
        "import_huggingface": "commands.import_model",
        "learn_shortlist": "commands.shortlist",
        "list_recipes": "api.folders",
        "list_runs": "api.folders",
        "load": "api.models",
        "make_student": "commands.make_student",
        "prepare": "api.experiments",
        "prune_experts": "commands.prune_experts",
        "prune_heads": "commands.prune_heads",
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
