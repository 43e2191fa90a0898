"""Closed sets of names that both the config and the modules use, each defined once.

Imports neither torch nor pydantic, so that any module may import it and `ds-seq check` stays fast.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Cleaning.
UnicodeForm = Literal["NFC", "NFD", "NFKC", "NFKD"]
Punctuation = Literal["moses"]
CleanPreset = Literal["mozilla", "nllb", "summarization"]
DuplicateKey = Literal[
    "pair", "source", "target", "normalized_pair", "normalized_source", "normalized_target"
]
LANGUAGE_IDS = ("fasttext", "lingua", "langid", "pycld2")
"""Libraries that tell the language of a text; none of them is required."""

# Training.
SaveErrorAnswer = Literal["stop", "continue"]

DecayShape = Literal["one_minus_sqrt", "linear"]
"""How the learning rate falls at the end of `scheduler.name: warmup_stable_decay`."""

# The model: its stacks, its feed-forwards, and the outputs of its layers.
Stack = Literal["encoder", "decoder"]
STACKS: tuple[Stack, ...] = get_args(Stack)
"""All stacks that a model can have, in the order in which a batch passes through them."""
LAYER_NAME = re.compile(rf"({'|'.join(STACKS)})\.layers\.(\d+)\.")
"""Beginning of the names of a layer's parts and tensors: stack, and number from 0."""
Placement = Literal["encoder", "decoder", "both"]
"""Stacks that have a part."""
ModelPart = Literal["encoder", "decoder", "embeddings", "experts", "routers", "adapters", "lora"]
MODEL_PARTS: tuple[ModelPart, ...] = get_args(ModelPart)
"""Parts of a model that can be selected; see `ds_seq.weights.selection`."""
ADAPTERS = "adapters."
"""Precedes the id of an adapter in such a selection."""
LoraModule = Literal["query", "key", "value", "output", "up", "down", "experts"]
NO_ADAPTER = "none"
"""Stands for no adapter where the id of one is expected; no adapter has this id."""
ActivationName = Literal[
    "relu",
    "relu_squared",
    "gelu",
    "gelu_tanh",
    "silu",
    "glu",
    "reglu",
    "geglu",
    "geglu_tanh",
    "swiglu",
]
GATED_ACTIVATIONS: frozenset[ActivationName] = frozenset(
    {"glu", "reglu", "geglu", "geglu_tanh", "swiglu"}
)
"""Activations that multiply two projections of the input."""
GateActivation = Literal["silu", "gelu"]
"""Activations of the gate of retention."""
BIASED_POSITIONS = frozenset({"alibi", "buckets"})
"""Kinds of positions that are a bias of the scores of self-attention."""
EmbeddingSharing = Literal["none", "decoder", "inputs", "all"]
TextSharing = Literal["all", "none"]
"""Of language models, which have one input."""
SineWavelengths = Literal["inclusive", "exclusive"]
RotaryScaling = Literal["none", "linear", "ntk", "yarn"]
"""How rotary positions change for longer texts."""
Capture = Literal["none", "hidden", "attention"]
"""What a model returns in addition to its scores: nothing, the hidden states of all layers, or
these and all attention maps."""
AttentionKind = Literal["encoder", "decoder", "cross"]
"""Self-attention of each stack, and the decoder's attention to the source."""
ATTENTION_KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)

LSTM_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""Parameters of an LSTM layer as PyTorch names them: for its input and for its state."""

# Experts.
Noise = Literal["none", "jitter", "gumbel"]
NOISES: tuple[Noise, ...] = get_args(Noise)
SecondExpert = Literal["always", "sampled", "random"]
SECOND_EXPERTS: tuple[SecondExpert, ...] = get_args(SecondExpert)
Drop = Literal["position", "probability", "random"]
DROPS: tuple[Drop, ...] = get_args(Drop)
Normalization = Literal["none", "before_dropping", "after_dropping"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
LoadBalance = Literal["rank", "global"]
LOAD_BALANCES: tuple[LoadBalance, ...] = get_args(LoadBalance)

# Losses.
BASE = "base"
"""Name of the criterion on the translations among the losses that `model_and_base` weights."""
LOAD_BALANCE = "load_balance"
ROUTER_Z = "router_z"
BUDGET = "budget"
ROUTER_LOSSES = (LOAD_BALANCE, ROUTER_Z, BUDGET)
Smoothing = Literal["fairseq", "torch"]
Strategy = Literal[
    "word_level", "word_seq_level", "batch_level", "global_level", "global_language_wise"
]
Divergence = Literal["forward_kl", "reverse_kl", "js", "tv"]
CandidateSearch = Literal["sampling", "beam"]
"""Where the candidates of minimum risk training come from."""
LayerMatch = Literal["supervise", "copy", "even"]
Projection = Literal["none", "learned"]
HIDDEN_PROJECTION = "hidden_projection"
EXPERT_PRIOR = "expert_prior"
TRAINING_ONLY = (HIDDEN_PROJECTION, EXPERT_PRIOR)
"""Modules of a model in training that are no part of the trained model."""
ExpertPrior = Literal["uniform", "learned"]
ExpertAssignment = Literal["hard", "soft"]
"""How the probabilities of the experts of a mixture are known, and which of them learn."""

# Search.
LengthPenaltyForm = Literal["fairseq", "gnmt"]
EnsembleMean = Literal["probabilities", "log_probabilities"]
LongLines = Literal["truncate", "skip", "error"]
LONG_LINES: tuple[LongLines, ...] = get_args(LongLines)
"""Treatment of a line that is longer than the model supports."""

LongPairs = Literal["skip", "truncate_source", "truncate"]
"""Treatment of a pair that is longer than the limits of its sides."""

OutputFormat = Literal["text", "tsv", "jsonl", "fairseq"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
ConstraintOrder = Literal["any", "given"]
CONSTRAINT_ORDERS: tuple[ConstraintOrder, ...] = get_args(ConstraintOrder)
UtilityName = Literal["chrf", "bleu"]
UTILITIES: tuple[UtilityName, ...] = get_args(UtilityName)
"""Similarities of two translations, for minimum Bayes risk."""
INT8 = "int8"
"""Number format of rounded weights, in addition to those of `Precision`."""

# Linear maps with weights of one or two bits.
BitWeights = Literal["ternary", "binary"]
BitNorm = Literal["rms", "layer", "none"]

# Trained models on disk.
ExportFormat = Literal["safetensors", "bitnet", "ctranslate2", "hf"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
EXPORT_FILE = "model.safetensors"
"""Name of the file with the weights, in the folder of an export."""
EXPORT_SUFFIX = ".safetensors"
"""Suffix of an export that is a single file."""
LayerMapName = Literal["even", "first", "table"]
LAYER_MAPS: tuple[LayerMapName, ...] = get_args(LayerMapName)
"""Ways to choose the layers of a teacher that its student copies."""

# Data.
BatchOrder = Literal["sorted", "sortish"]
OnOutOfMemory = Literal["split", "skip", "stop"]
OnDivergence = Literal["stop", "skip", "back"]
SideChoice = Literal["source", "target", "both"]
INFINITE = "inf"
"""Temperature at which shares do not depend on sizes."""

TextUnit = Literal["tokens", "document", "line"]
"""What blocks of text are made of."""

# Text.
SPLITS = ("train", "valid", "test")
Side = Literal["source", "target"]
SIDES: tuple[Side, Side] = get_args(Side)
NumSides = Literal[1, 2]
"""Text of one side, or pairs."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed text files, which are read as they are."""
InvalidUtf8 = Literal["stop", "drop", "replace"]
"""What happens to a line that is not UTF-8."""
SENTENCEPIECE = "sentencepiece"
FAIRSEQ_DICT = "fairseq_dict"
HUGGINGFACE = "huggingface"
TOKENIZER_NAMES = (SENTENCEPIECE, FAIRSEQ_DICT, HUGGINGFACE)
"""Values of `data.vocab.name` other than `package.module:Name`."""
CONFIG_FILE = "config.yaml"
"""Name of the file with the experiment of a run or an export, in its folder."""
LOG_FILE = "train.log"
"""Name of the file with the messages of a run, in its folder."""
METRICS_FILE = "metrics.jsonl"
"""Name of the file with the figures of a run, one record per line."""
LAYER_NAMES = "layers"
"""Key of such a record with the names of the layers that `moe/layer<i>` numbers."""
STARTS_FILE = "starts.jsonl"
"""Name of the file with a record for each start of a run."""
TrackerName = Literal["wandb", "mlflow"]
PROFILE_FOLDER = "profile"
"""Name of the folder with traces of updates, in the folder of a run."""
HISTORY_FILE = "history.json"
"""Name of the file with the settings of a run, and since when they hold."""
VOCAB_FILE = "vocab.model"
"""Name of the file with the bytes of a joint tokenizer, in folders of shards, runs and exports."""
VOCAB_FILES = ("vocab.source.model", "vocab.target.model")
"""Names of the files if source and target have tokenizers of their own."""
SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
"""Special symbols of a vocabulary, in the order of their ids, which is fairseq's."""
MASK_PIECE = "<mask>"
"""Stands for hidden text; see `data.vocab.mask`."""
SENTINEL_PIECE = "<extra_id_{}>"
"""T5's symbols for hidden spans, by number; see `data.vocab.sentinels`."""
IDENTITY = "identity"
NORMALIZATION_RULES = (IDENTITY, "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf")
"""Rules by which SentencePiece can rewrite text; `cf` folds case. `IDENTITY` changes nothing."""

# Metrics.
LOSS = "loss"
"""The figure that every validation measures: the loss per target token, without router losses."""

ScoreAverage = Literal["pooled", "texts", "pairs"]
"""How scores of several validation texts become one figure."""

TEXT_METRICS = (
    "bleu",
    "chrf",
    "chrf++",
    "ter",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
)
"""Metrics that compare a text with references."""
PERPLEXITY = "perplexity"
LM_METRICS = (PERPLEXITY, "word_perplexity", "bits_per_byte")
"""Metrics of language models, per token of the vocabulary, per word, and per byte of the text."""
TOKEN_METRICS = {"accuracy": True, PERPLEXITY: False}
"""Metrics of the probabilities of given tokens, and whether higher values are better."""
DEFAULT_METRICS = ("bleu", "chrf")
"""Metrics of `ds-seq score` and of translations with a reference."""
FILTER_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
"""Metrics of single sentences by which pseudo-labels are filtered."""
PairedTestName = Literal["bootstrap", "randomization"]
PAIRED_TESTS: tuple[PairedTestName, ...] = get_args(PairedTestName)
RESAMPLING_SEED = 12345  # as sacreBLEU
