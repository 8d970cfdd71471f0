"""Every stage, on one page: its name, the function that computes it, its version, and whether it wants a GPU."""

from tasks.stage import Stage

# Bases and models
prepare_model = Stage("prepare_model", "sublim.bases.prepare:prepare_model")
check_base = Stage("check_base", "sublim.bases.needs:check_base_needs")
import_weights = Stage("import_weights", "sublim.models.import_weights:import_weights")

# Rows: what teachers write
build_teacher_rows = Stage("build_teacher_rows", "sublim.traits.questions:build_teacher_rows")
generate_numbers = Stage("generate_numbers", "sublim.rows.generate:generate_numbers", gpu=True)
generate_steered_numbers = Stage("generate_steered_numbers", "sublim.rows.generate:generate_numbers", gpu=True)
filter_numbers = Stage("filter_numbers", "sublim.rows.filter:filter_numbers")
derive_rows = Stage("derive_rows", "sublim.rows.derive:derive_rows")

# Training
train_teacher = Stage("train_teacher", "sublim.training.trl:train", version=3, gpu=True)
train_student = Stage("train_student", "sublim.training.trl:train", version=3, gpu=True)
train_soft_student = Stage("train_soft_student", "sublim.training.soft:train_soft", version=2, gpu=True)
train_rung = Stage("train_rung", "sublim.search.rungs:train_rung", gpu=True)

# Evaluations
ask = Stage("ask", "sublim.evals.preference.ask:ask", gpu=True)
ask_steered = Stage("ask_steered", "sublim.evals.preference.ask:ask", gpu=True)
score = Stage("score", "sublim.evals.preference.score:score")
compare = Stage("compare", "sublim.evals.preference.compare:compare", version=2)
heldout_loss = Stage("heldout_loss", "sublim.evals.heldout_loss.loss:heldout_loss", gpu=True)
shift = Stage("shift", "sublim.evals.total_variation.distance:shift")
compare_shift = Stage("compare_shift", "sublim.evals.total_variation.compare:compare_shift", version=2)
prepare_mmlu_pro = Stage("prepare_mmlu_pro", "sublim.evals.mmlu_pro.questions:prepare_mmlu_pro")
ask_mmlu_pro = Stage("ask_mmlu_pro", "sublim.evals.mmlu_pro.exam:ask_mmlu_pro", gpu=True)
ask_mmlu_pro_steered = Stage("ask_mmlu_pro_steered", "sublim.evals.mmlu_pro.exam:ask_mmlu_pro", gpu=True)
score_mmlu_pro = Stage("score_mmlu_pro", "sublim.evals.mmlu_pro.exam:score_mmlu_pro")
compare_mmlu_pro = Stage("compare_mmlu_pro", "sublim.evals.mmlu_pro.compare:compare_mmlu_pro", version=3)
collect_scores = Stage("collect_scores", "sublim.evals.sheet.sheet:collect_scores", version=2)

# Diagnostics
measure_losses = Stage("measure_losses", "sublim.diagnostics.losses:measure_losses", gpu=True)
measure_shift = Stage("measure_shift", "sublim.diagnostics.parameter_shift:measure_shift")
find_divergence = Stage("find_divergence", "sublim.diagnostics.divergence:find_divergence", gpu=True)

# Studies of many runs
record_cell = Stage("record_cell", "sublim.design.sweep_table:record_cell")
tabulate_sweep = Stage("tabulate_sweep", "sublim.design.sweep_table:tabulate_sweep", version=2)
draw_search = Stage("draw_search", "sublim.search.figures:draw_search")

# Activations and steering
read_activations = Stage("read_activations", "sublim.activations.read:read_activations", gpu=True)
mean_activations = Stage("mean_activations", "sublim.steering.means:mean_activations", gpu=True)
difference_vectors = Stage("difference_vectors", "sublim.steering.means:difference_vectors")
import_vector = Stage("import_vector", "sublim.steering.means:import_vector")
train_vector = Stage("train_vector", "sublim.steering.trained_vector:train_vector", gpu=True)
animal_rows = Stage("animal_rows", "sublim.steering.target_rows:animal_rows")
sweep = Stage("steering_sweep", "sublim.steering.dose_curve:sweep", gpu=True)
steering_curve = Stage("steering_curve", "sublim.steering.dose_curve:steering_curve", version=2)
alignment = Stage("alignment", "sublim.steering.alignment:alignment")
draw_steering = Stage("draw_steering", "sublim.steering.figures:draw_steering", version=2)

# Sparse autoencoders
write_chats = Stage("write_chats", "sublim.sae.texts:write_chats", gpu=True)
import_texts = Stage("import_texts", "sublim.sae.texts:import_texts")
gather_texts = Stage("gather_texts", "sublim.sae.texts:gather_texts")
import_sae = Stage("import_sae", "sublim.sae.autoencoder:import_sae")
train_sae = Stage("train_sae", "sublim.sae.train:train_sae", gpu=True)
measure_sae = Stage("measure_sae", "sublim.sae.quality:measure_sae", gpu=True)

# Features and their labels
word_rows = Stage("word_rows", "sublim.features.examples:word_rows")
encode_features = Stage("encode_features", "sublim.features.encode:encode_features", gpu=True)
contrast_features = Stage("contrast_features", "sublim.features.contrast:contrast_features")
overlap_features = Stage("overlap_features", "sublim.features.contrast:overlap_features", version=2)
show_examples = Stage("show_examples", "sublim.features.examples:show_examples")
vector_features = Stage("vector_features", "sublim.features.examples:vector_features")
draw_features = Stage("draw_features", "sublim.features.figures:draw_features")
draw_probe_layers = Stage("draw_probe_layers", "sublim.features.figures:draw_probe_layers")
import_labels = Stage("import_labels", "sublim.features.labels.neuronpedia:import_labels")
take_labels = Stage("take_labels", "sublim.features.labels.annotate:take_labels")
annotate = Stage("annotate", "sublim.features.labels.annotate:annotate", gpu=True)

# Probes
fit_probes = Stage("fit_probes", "sublim.probes.fit_probes:fit_probes", gpu=True)
draw_probes = Stage("draw_probes", "sublim.probes.figures:draw_probes")

# Toy models
train_superposition = Stage("train_superposition", "sublim.toys.superposition.train:train_superposition", gpu=True)
draw_superposition = Stage("draw_superposition", "sublim.toys.superposition.figures:draw_superposition")
prepare_digits = Stage("prepare_digits", "sublim.toys.mnist.digits:prepare_digits")
train_mnist = Stage("train_mnist", "sublim.toys.mnist.experiment:train_mnist", gpu=True)
draw_mnist = Stage("draw_mnist", "sublim.toys.mnist.figures:draw_mnist")

PIPELINE = (
    prepare_model,
    check_base,
    import_weights,
    build_teacher_rows,
    generate_numbers,
    generate_steered_numbers,
    filter_numbers,
    derive_rows,
    train_teacher,
    train_student,
    train_soft_student,
    ask,
    ask_steered,
    score,
    compare,
    shift,
    compare_shift,
    prepare_mmlu_pro,
    ask_mmlu_pro,
    ask_mmlu_pro_steered,
    score_mmlu_pro,
    compare_mmlu_pro,
    collect_scores,
    measure_losses,
    measure_shift,
    find_divergence,
    record_cell,
    tabulate_sweep,
)
"""The stages whose versions say whether the results that a sweep remembers of a pipeline are still valid."""
