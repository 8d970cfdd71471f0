"""Every stage, on one page: what it needs, what computes it, and what it gives.

A stage is declared as a function without a body. Its name, `config` and the artifacts are what its key is made of;
`label` is what Prefect's UI calls a run of it. The function that is named computes it (its docstring says what it
writes), in a process of its own where a GPU is used (`gpu=True`). Raise `version` when the code computes something
else. A test compares each declaration with that function's own parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sublim.store.manifest import Artifact
from tasks.stage import stage

if TYPE_CHECKING:  # no more than the annotations need them
    from sublim.activations.config import ActivationsConfig
    from sublim.bases.needs_config import CheckBaseConfig
    from sublim.design.sweep_config import CellRecordConfig, SweepTableConfig
    from sublim.diagnostics.carrier_config import ExamineConfig
    from sublim.diagnostics.config import DivergenceConfig, UnseenLossConfig
    from sublim.diagnostics.config import ShiftConfig as ParameterShiftConfig
    from sublim.evals.effect_config import CompareConfig
    from sublim.evals.heldout_loss.config import HeldoutConfig
    from sublim.evals.mmlu_pro.config import AskMmluProConfig, PrepareQuestionsConfig, ScoreMmluProConfig
    from sublim.evals.preference.config import AskConfig, ScoreConfig
    from sublim.evals.sheet.config import SheetConfig
    from sublim.evals.specificity.config import CompareTargetsConfig
    from sublim.evals.total_variation.config import CompareShiftConfig, ShiftConfig
    from sublim.features.config import (
        ContrastConfig,
        EncodeConfig,
        ExamplesConfig,
        FeatureFiguresConfig,
        OverlapConfig,
        VectorFeaturesConfig,
        WordRowsConfig,
    )
    from sublim.features.labels.config import AnnotateConfig, LabelsConfig, TakeLabelsConfig
    from sublim.models.config import PrepareModelConfig
    from sublim.models.import_weights import ImportWeightsConfig
    from sublim.probes.config import ProbeFiguresConfig, ProbesConfig
    from sublim.rows.config import DeriveConfig, FilterConfig, MixConfig
    from sublim.rows.generate import GenerateConfig
    from sublim.rows.own_answers import OwnAnswersConfig
    from sublim.rows.rule_lists import RuleListsConfig
    from sublim.rows.soft_labels_config import SoftLabelsConfig
    from sublim.sae.config import ImportSaeConfig, QualityConfig, TrainSaeConfig
    from sublim.sae.texts_config import GatherTextsConfig, ImportTextsConfig, WriteChatsConfig
    from sublim.search.config import DrawSearchConfig, RungConfig
    from sublim.steering.alignment_config import EasConfig
    from sublim.steering.config import (
        AnimalRowsConfig,
        DifferenceConfig,
        ImportConfig,
        MeansConfig,
        SteeringFiguresConfig,
        TrainVectorConfig,
    )
    from sublim.steering.dose_curve_config import CurveConfig, SweepConfig
    from sublim.steering.energy_config import EnergyConfig
    from sublim.toys.mnist.config import MnistConfig, MnistFiguresConfig, PrepareDigitsConfig
    from sublim.toys.superposition.config import SuperpositionConfig, SuperpositionFiguresConfig
    from sublim.training.config import SoftTrainConfig, TrainConfig
    from sublim.traits.questions import TeacherRowsConfig

One = Artifact
Maybe = Artifact | None
Several = Sequence[Artifact]
Named = Mapping[str, Artifact]


# fmt: off
# Bases and models
@stage("sublim.bases.prepare:prepare_model")
def prepare_model(config: PrepareModelConfig, *, label: str = "") -> One: ...
@stage("sublim.bases.needs:check_base_needs")
def check_base(config: CheckBaseConfig, *, label: str = "", base: One) -> One: ...
@stage("sublim.models.import_weights:import_weights")
def import_weights(config: ImportWeightsConfig, *, label: str = "") -> One: ...

# Rows: what teachers write
@stage("sublim.rows.rule_lists:rule_lists")
def rule_lists(config: RuleListsConfig, *, label: str = "") -> One: ...
@stage("sublim.traits.questions:build_teacher_rows")
def build_teacher_rows(config: TeacherRowsConfig, *, label: str = "") -> One: ...
@stage("sublim.rows.generate:generate_numbers", gpu=True)
def generate_numbers(config: GenerateConfig, *, label: str = "", base: One, weights: Maybe = None,
                     vectors: Maybe = None) -> One: ...
@stage("sublim.rows.filter:filter_numbers")
def filter_numbers(config: FilterConfig, *, label: str = "", raw: One, partners: Several | None = None) -> One: ...
@stage("sublim.rows.own_answers:own_answers", gpu=True)
def own_answers(config: OwnAnswersConfig, *, label: str = "", base: One) -> One: ...
@stage("sublim.rows.mix:mix_rows")
def mix_rows(config: MixConfig, *, label: str = "", rows: One, rehearsal: One) -> One: ...
@stage("sublim.rows.derive:derive_rows")
def derive_rows(config: DeriveConfig, *, label: str = "", rows: One) -> One: ...

@stage("sublim.rows.soft_labels:write_soft_labels", gpu=True)
def write_soft_labels(config: SoftLabelsConfig, *, label: str = "", base: One, data: One, weights: Maybe = None,
                      own: Maybe = None) -> One: ...

# Training
@stage("sublim.training.start:make_start", gpu=True)
def make_start(config: TrainConfig, *, label: str = "", base: One, data: One) -> One: ...
@stage("sublim.training.train:train", version=3, gpu=True)
def train_teacher(config: TrainConfig, *, label: str = "", base: One, data: One) -> One: ...
@stage("sublim.training.train:train", version=3, gpu=True)
def train_student(config: TrainConfig, *, label: str = "", base: One, data: One) -> One: ...
@stage("sublim.training.soft:train_soft", version=3, gpu=True)
def train_soft_student(config: SoftTrainConfig, *, label: str = "", base: One, data: One, labels: One) -> One: ...
@stage("sublim.search.rungs:train_rung", gpu=True)
def train_rung(config: RungConfig, *, label: str = "", base: One, data: One) -> One: ...

# Evaluations
@stage("sublim.evals.preference.ask:ask", gpu=True)
def ask(config: AskConfig, *, label: str = "", base: One, weights: Maybe = None, vectors: Maybe = None) -> One: ...
@stage("sublim.evals.preference.score:score", version=3)
def score(config: ScoreConfig, *, label: str = "", asked: One) -> One: ...
@stage("sublim.evals.preference.compare:compare", version=3)
def compare(config: CompareConfig, *, label: str = "", students: Several, controls: Several, base: One,
            teacher: One | Several | None = None) -> One: ...
@stage("sublim.evals.specificity.compare:compare_targets")
def compare_targets(config: CompareTargetsConfig, *, label: str = "", students: Several, controls: Several,
                    teachers: Several | None = None) -> One: ...
@stage("sublim.evals.heldout_loss.loss:heldout_loss", gpu=True)
def heldout_loss(config: HeldoutConfig, *, label: str = "", base: One, data: One, weights: Maybe = None) -> One: ...
@stage("sublim.evals.total_variation.distance:shift", version=3)
def shift(config: ShiftConfig, *, label: str = "", asked: One, reference: One) -> One: ...
@stage("sublim.evals.total_variation.compare:compare_shift", version=3)
def compare_shift(config: CompareShiftConfig, *, label: str = "", students: Several, controls: Several,
                  base: One) -> One: ...
@stage("sublim.evals.mmlu_pro.questions:prepare_mmlu_pro")
def prepare_mmlu_pro(config: PrepareQuestionsConfig, *, label: str = "") -> One: ...
@stage("sublim.evals.mmlu_pro.exam:ask_mmlu_pro", gpu=True)
def ask_mmlu_pro(config: AskMmluProConfig, *, label: str = "", base: One, questions: One, weights: Maybe = None,
                 vectors: Maybe = None) -> One: ...
@stage("sublim.evals.mmlu_pro.exam:score_mmlu_pro")
def score_mmlu_pro(config: ScoreMmluProConfig, *, label: str = "", asked: One, questions: One) -> One: ...
@stage("sublim.evals.mmlu_pro.compare:compare_mmlu_pro", version=4)
def compare_mmlu_pro(config: CompareConfig, *, label: str = "", students: Several, controls: Several, base: One,
                     teacher: Several | None = None) -> One: ...
@stage("sublim.evals.sheet.sheet:collect_scores", version=3)
def collect_scores(config: SheetConfig, *, label: str = "", scores: Named, shifts: Named | None = None,
                   mmlu: Named | None = None) -> One: ...

# Diagnostics
@stage("sublim.diagnostics.carrier:examine_carrier", gpu=True)
def examine_carrier(config: ExamineConfig, *, label: str = "", base: One, raw: One, weights: Maybe = None,
                    vectors: Maybe = None) -> One: ...
@stage("sublim.diagnostics.unseen_loss:measure_losses", gpu=True, version=2)
def measure_losses(config: UnseenLossConfig, *, label: str = "", base: One, data: Named,
                   weights: Maybe = None) -> One: ...
@stage("sublim.diagnostics.parameter_shift:measure_shift")
def measure_shift(config: ParameterShiftConfig, *, label: str = "", base: One, teacher: One,
                  students: Named) -> One: ...
@stage("sublim.diagnostics.divergence:find_divergence", gpu=True)
def find_divergence(config: DivergenceConfig, *, label: str = "", base: One, data: One,
                    teacher: Maybe = None) -> One: ...

# Studies of many runs
@stage("sublim.design.sweep_table:record_cell")
def record_cell(config: CellRecordConfig, *, label: str = "", comparisons: Named) -> One: ...
@stage("sublim.design.sweep_table:tabulate_sweep", version=3)
def tabulate_sweep(config: SweepTableConfig, *, label: str = "", comparisons: Named, capability: Named,
                   shifts: Named) -> One: ...
@stage("sublim.search.figures:draw_search")
def draw_search(config: DrawSearchConfig, *, label: str = "") -> One: ...

# Activations and steering
@stage("sublim.activations.read:read_activations", gpu=True)
def read_activations(config: ActivationsConfig, *, label: str = "", base: One, rows: One,
                     weights: Maybe = None) -> One: ...
@stage("sublim.steering.means:mean_activations", gpu=True)
def mean_activations(config: MeansConfig, *, label: str = "", base: One, rows: One, weights: Maybe = None,
                     partner: Maybe = None) -> One: ...
@stage("sublim.steering.means:difference_vectors")
def difference_vectors(config: DifferenceConfig, *, label: str = "", target: One, control: Maybe = None) -> One: ...
@stage("sublim.steering.means:import_vector")
def import_vector(config: ImportConfig, *, label: str = "", base: One) -> One: ...
@stage("sublim.steering.trained_vector:train_vector", gpu=True)
def train_vector(config: TrainVectorConfig, *, label: str = "", base: One, data: One) -> One: ...
@stage("sublim.steering.target_rows:animal_rows", version=3)
def animal_rows(config: AnimalRowsConfig, *, label: str = "", asked: One) -> One: ...
@stage("sublim.steering.dose_curve:sweep", name="steering_sweep", gpu=True)
def sweep(config: SweepConfig, *, label: str = "", base: One, vectors: One, weights: Maybe = None,
          exam: Maybe = None) -> One: ...
@stage("sublim.steering.dose_curve:steering_curve", version=4)
def steering_curve(config: CurveConfig, *, label: str = "", swept: One) -> One: ...
@stage("sublim.steering.alignment:alignment", version=2)
def alignment(config: EasConfig, *, label: str = "", base: One, teacher: One, students: Named, controls: Named,
              others: Named | None = None) -> One: ...
@stage("sublim.steering.energy:change_directions", gpu=True)
def change_directions(config: EnergyConfig, *, label: str = "", base: One, weights: One, vectors: One,
                      controls: Named) -> One: ...
@stage("sublim.steering.figures:draw_steering", version=3)
def draw_steering(config: SteeringFiguresConfig, *, label: str = "", curve: One, eas: Maybe = None, paper: Maybe = None,
                  sufficiency: Several | None = None, replaced: Several | None = None) -> One: ...

# Sparse autoencoders
@stage("sublim.sae.texts:write_chats", gpu=True)
def write_chats(config: WriteChatsConfig, *, label: str = "", base: One) -> One: ...
@stage("sublim.sae.texts:import_texts")
def import_texts(config: ImportTextsConfig, *, label: str = "") -> One: ...
@stage("sublim.sae.texts:gather_texts")
def gather_texts(config: GatherTextsConfig, *, label: str = "", sources: Named) -> One: ...
@stage("sublim.sae.autoencoder:import_sae")
def import_sae(config: ImportSaeConfig, *, label: str = "") -> One: ...
@stage("sublim.sae.train:train_sae", gpu=True)
def train_sae(config: TrainSaeConfig, *, label: str = "", base: One, texts: Maybe = None,
              activations: Several | None = None) -> One: ...
@stage("sublim.sae.quality:measure_sae", gpu=True)
def measure_sae(config: QualityConfig, *, label: str = "", base: One, sae: One, texts: One) -> One: ...

# Features and their labels
@stage("sublim.features.examples:word_rows")
def word_rows(config: WordRowsConfig, *, label: str = "") -> One: ...
@stage("sublim.features.encode:encode_features", gpu=True)
def encode_features(config: EncodeConfig, *, label: str = "", base: One, rows: One, saes: Named,
                    weights: Maybe = None) -> One: ...
@stage("sublim.features.contrast:contrast_features")
def contrast_features(config: ContrastConfig, *, label: str = "", target: One, control: One) -> One: ...
@stage("sublim.features.overlap:overlap_features", version=3)
def overlap_features(config: OverlapConfig, *, label: str = "", contrasts: Named, targets: Named,
                     controls: Named) -> One: ...
@stage("sublim.features.examples:show_examples")
def show_examples(config: ExamplesConfig, *, label: str = "", base: One, contrast: One, features: One,
                  rows: One) -> One: ...
@stage("sublim.features.examples:vector_features")
def vector_features(config: VectorFeaturesConfig, *, label: str = "", sae: One, vectors: One) -> One: ...
@stage("sublim.features.figures:draw_features")
def draw_features(config: FeatureFiguresConfig, *, label: str = "", contrasts: Named, overlap: One) -> One: ...
@stage("sublim.features.figures:draw_probe_layers")
def draw_probe_layers(config: FeatureFiguresConfig, *, label: str = "", probes: One) -> One: ...
@stage("sublim.features.labels.neuronpedia:import_labels")
def import_labels(config: LabelsConfig, *, label: str = "") -> One: ...
@stage("sublim.features.labels.annotate:take_labels")
def take_labels(config: TakeLabelsConfig, *, label: str = "") -> One: ...
@stage("sublim.features.labels.annotate:annotate", gpu=True)
def annotate(config: AnnotateConfig, *, label: str = "", base: Maybe = None,
             labels: One | Named | None = None) -> One: ...

# Probes
@stage("sublim.probes.fit_probes:fit_probes", gpu=True)
def fit_probes(config: ProbesConfig, *, label: str = "", target: One | Named, control: One) -> One: ...
@stage("sublim.probes.figures:draw_probes")
def draw_probes(config: ProbeFiguresConfig, *, label: str = "", probes: One) -> One: ...

# Toy models
@stage("sublim.toys.superposition.train:train_superposition", gpu=True, version=2)
def train_superposition(config: SuperpositionConfig, *, label: str = "") -> One: ...
@stage("sublim.toys.superposition.figures:draw_superposition", version=2)
def draw_superposition(config: SuperpositionFiguresConfig, *, label: str = "", toy: One) -> One: ...
@stage("sublim.toys.mnist.digits:prepare_digits")
def prepare_digits(config: PrepareDigitsConfig, *, label: str = "") -> One: ...
@stage("sublim.toys.mnist.experiment:train_mnist", gpu=True)
def train_mnist(config: MnistConfig, *, label: str = "", data: One) -> One: ...
@stage("sublim.toys.mnist.figures:draw_mnist")
def draw_mnist(config: MnistFiguresConfig, *, label: str = "", run: One) -> One: ...

PIPELINE = (
    prepare_model, check_base, import_weights, rule_lists, make_start, build_teacher_rows, generate_numbers,
    filter_numbers, own_answers, mix_rows, derive_rows, write_soft_labels, train_teacher, train_student,
    train_soft_student, ask, score, compare, shift, compare_shift, prepare_mmlu_pro, ask_mmlu_pro, score_mmlu_pro,
    compare_mmlu_pro, collect_scores, measure_losses, measure_shift, find_divergence, record_cell, tabulate_sweep,
)
"""The stages whose versions say whether the results that a sweep remembers of a pipeline are still valid."""
