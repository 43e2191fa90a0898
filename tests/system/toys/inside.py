"""What a developer changes in ds_seq for a part of each kind, and how an experiment selects it."""

from __future__ import annotations

from pathlib import Path

from tests.system.toys.toy import Change, Toy, before, imports, put

HERE = Path(__file__).parent

NORM = Toy(
    "norm",
    ("model.norm=scale",),
    {"modules/scale_norm.py": HERE / "scale_norm.py"},
    (
        before(
            "config/model/norm.py",
            "NormConfig = Annotated[\n",
            '''\
class ScaleNormConfig(NamedConfig):
    """Length of the vector: a learned scale and no shift."""

    name: Literal["scale"] = Field(default="scale", description="This norm.")
    eps: float = Field(default=1e-6, gt=0.0, description="Smallest length.")

    def num_params(self, d_model: int) -> int:
        """The scale."""
        return d_model


''',
        ),
        put(
            "config/model/norm.py",
            'Annotated[RmsNormConfig, Tag("rms")]',
            ' | Annotated[ScaleNormConfig, Tag("scale")]',
        ),
        put("modules/norm.py", '"rms": RmsNorm', ', "scale": ScaleNorm'),
        imports("modules/norm.py", "from ds_seq.modules.scale_norm import ScaleNorm"),
    ),
    {"norm": "scale"},
)

ACTIVATION = Toy(
    "activation",
    ("model.activation=mish",),
    {},
    (
        put("names.py", 'ActivationName = Literal[\n    "relu",\n', '    "mish",\n'),
        Change(
            "modules/activations.py",
            "ACTIVATIONS: dict[str, Activation] = {\n",
            """\
def _mish_backward(grad: Tensor, inner: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.mish_backward(grad, inner)
    return result


ACTIVATIONS: dict[str, Activation] = {
    "mish": _plain("mish", F.mish, _mish_backward),
""",
        ),
    ),
    {"activation": "mish"},
)

POSITIONS = Toy(
    "positions",
    ("model.positions=distance",),
    {"modules/distance_bias.py": HERE / "distance_bias.py"},
    (
        before(
            "config/model/positions.py",
            "PositionsConfig = Annotated[\n",
            '''\
class DistanceConfig(NamedConfig):
    """A learned bias of attention scores by distance."""

    name: Literal["distance"] = Field(default="distance", description="These positions.")

    def errors(self, d_model: int, head_dim: int) -> list[tuple[str, str]]:
        """Any width will do."""
        return []

    def num_params(self, d_model: int, max_positions: int, num_heads: int) -> int:
        """A number for each head and distance."""
        return num_heads * (2 * 8 + 1)


''',
        ),
        put(
            "config/model/positions.py",
            '    | Annotated[RotaryConfig, Tag("rotary")]',
            '\n    | Annotated[DistanceConfig, Tag("distance")]',
        ),
        put(
            "modules/position_kinds.py",
            "POSITIONS: dict[str, PositionKind] = {\n",
            '    "distance": PositionKind(bias=DistanceBias),\n',
        ),
        imports(
            "modules/position_kinds.py", "from ds_seq.modules.distance_bias import DistanceBias"
        ),
    ),
    {"positions": "distance"},
)

MIXER = Toy(
    "mixer",
    ("model.mixer=average",),
    {"modules/average.py": HERE / "average.py"},
    (
        before(
            "config/model/mixer.py",
            "    num_heads: Width = Field(",
            '    mixer: Literal["attention", "average"] = Field(\n'
            '        default="attention", description="How tokens see their own sentence."\n'
            "    )\n",
        ),
        before(
            "config/model/mixer.py",
            "        params, retention = self.attentions_of(stack) * attention",
            '        if self.mixer == "average":  # maps of values and output, with biases\n'
            "            average = 2 * (d_model * d_model + d_model)\n"
            "            return average + (MIXERS_PER_LAYER[stack] - 1) * attention\n",
        ),
        before(
            "models/build/mixer.py",
            "    norms = _query_key_norms(cfg, sets)\n    if",
            '    if cfg.mixer == "average":\n'
            "        return ExponentialAverage(cfg.d_model, causal)\n",
        ),
        imports("models/build/mixer.py", "from ds_seq.modules.average import ExponentialAverage"),
    ),
    {"mixer": "average"},
)

RESIDUAL = Toy(
    "residual scheme",
    ("model.norm_position=scaled",),
    {"modules/scaled_residual.py": HERE / "scaled_residual.py"},
    (
        Change(
            "config/model/residual.py",
            'Literal["pre", "post", ',
            'Literal["pre", "post", "scaled", ',
        ),
        before(
            "models/build/residual.py",
            "    norm = make_norm(cfg, sets=cfg.sets_of(stack))\n",
            '    if cfg.norm_position == "scaled":\n'
            "        scale = (2.0 * cfg.decoder_layers) ** 0.25\n"
            "        return ScaledResidual(make_norm(cfg), cfg.dropout, drop_path, scale)\n",
        ),
        imports(
            "models/build/residual.py", "from ds_seq.modules.scaled_residual import ScaledResidual"
        ),
    ),
    {"norm_position": "scaled"},
)

CRITERION = Toy(
    "criterion",
    ("criterion={name: focal, gamma: 1.5}",),
    {"criterions/focal.py": HERE / "focal.py"},
    (
        before(
            "config/criterion.py",
            "class ModelAndBaseConfig(Config):\n",
            '''\
class FocalConfig(Config):
    """Cross entropy that looks away from what is easy."""

    name: Literal["focal"] = Field(default="focal", description="This criterion.")
    gamma: float = Field(default=2.0, description="0 is cross entropy.")


''',
        ),
        before(
            "config/criterion.py",
            '    | Annotated[ModelAndBaseConfig, Tag("model_and_base")]\n',
            '    | Annotated[FocalConfig, Tag("focal")]\n',
        ),
        before(
            "criterions/__init__.py",
            '    "cross_entropy": ',
            '    "focal": lambda config, *_: Focal(config.gamma),\n',
        ),
        imports("criterions/__init__.py", "from ds_seq.criterions.focal import Focal"),
    ),
)

EXPERTS = "{num_experts: 4, top_k: 2, every: 1"

ROUTER = Toy(
    "router",
    (f"model.moe={EXPERTS}, router: hash}}",),
    {"moe/hash_router.py": HERE / "hash_router.py"},
    (
        put("config/model/router.py", 'RouterName = Literal["softmax", ', '"hash", '),
        before(
            "config/model/router.py",
            '    if router == "cosine":',
            '    if router == "hash":\n        return 0\n',
        ),
        before(
            "models/build/ffn.py",
            '    if moe.router == "expert_choice":\n',
            '    if moe.router == "hash":\n'
            "        return HashRouter(d_model, num_experts, moe.top_k)\n",
        ),
        imports("models/build/ffn.py", "from ds_seq.moe.hash_router import HashRouter"),
    ),
    {"moe": {"num_experts": 4, "top_k": 2, "every": 1, "router": "hash", "capacity_factor": None}},
)

TASK = Toy(
    "task",
    (
        "task={name: copying, lines: 100}",
        "validation={metrics: [misses], best: misses, max_sentences: 4}",
        "train.validate_every=2",
    ),
    {"tasks/copying.py": HERE.parent / "outside.py"},
    (
        before(
            "config/task.py",
            "TaskConfig = Annotated[\n",
            '''\
class CopyingConfig(Config):
    """A line, said again."""

    name: Literal["copying"] = Field(default="copying", description="This task.")
    lines: int = Field(default=100, description="Most lines of a split.")


''',
        ),
        put(
            "config/task.py",
            'Annotated[TranslationConfig, Tag("translation")]\n',
            '    | Annotated[CopyingConfig, Tag("copying")]\n',
        ),
        put(
            "tasks/__init__.py",
            "TASKS: dict[str, Callable[[Any, DataConfig], Task]] = {",
            '"copying": lambda config, data: CopyTask(data, config.lines), ',
        ),
        imports("tasks/__init__.py", "from ds_seq.tasks.copying import CopyTask"),
    ),
)

SOURCE = Toy(
    "data source",
    ("data.source={name: first, pairs: 150}",),
    {"data/first_pairs.py": HERE / "first_pairs.py"},
    (
        before(
            "config/data.py",
            "SourceConfig = Annotated[\n",
            '''\
class FirstConfig(Config):
    """The first pairs of the shards."""

    name: Literal["first"] = Field(default="first", description="This source.")
    pairs: PositiveInt = Field(default=100, description="How many.")


''',
        ),
        put(
            "config/data.py",
            'Annotated[ShardsConfig, Tag("shards")]',
            ' | Annotated[FirstConfig, Tag("first")]',
        ),
        put("data/open.py", '= {"shards": open_shards', ', "first": open_first'),
        imports("data/open.py", "from ds_seq.data.first_pairs import open_first"),
    ),
)

TOKENIZER = Toy(
    "tokenizer",
    (
        "data.vocab={name: characters, size: 200, model_type: unigram, options: {upper: true}}",
        "data.max_source_length=128",
        "data.max_target_length=128",
        "model.max_positions=128",
    ),
    {"text/characters.py": HERE.parents[1] / "data" / "characters.py"},
    (
        put("names.py", "TOKENIZER_NAMES = (SENTENCEPIECE,", ' "characters",'),
        put(
            "text/build.py", "SENTENCEPIECE: SentencePieceTokenizer,", ' "characters": Characters,'
        ),
        imports(
            "text/build.py", "from ds_seq.text.characters import CharacterTokenizer as Characters"
        ),
    ),
)

METRIC = Toy(
    "metric",
    (
        "validation={metrics: [exact], best: exact, max_sentences: 4}",
        "train.validate_every=2",
    ),
    {"scores/exact.py": HERE / "exact.py"},
    (
        put("names.py", "TEXT_METRICS = (\n", '    "exact",\n'),
        put(
            "scores/metric.py",
            "METRICS: Mapping[str, Callable[[str], Metric]] = {\n",
            '    "exact": lambda _: Metric(\n'
            '        "exact", True, lambda found, wanted: Measured(exact_matches(found, wanted))\n'
            "    ),\n",
        ),
        imports("scores/metric.py", "from ds_seq.scores.exact import exact_matches"),
    ),
)

TOYS = (
    NORM,
    ACTIVATION,
    POSITIONS,
    MIXER,
    RESIDUAL,
    CRITERION,
    ROUTER,
    TASK,
    SOURCE,
    TOKENIZER,
    METRIC,
)
