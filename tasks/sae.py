"""The stages around sparse autoencoders as cached tasks."""

from tasks.stage import Stage

write_chats = Stage("write_chats", "sublim.sae_texts:write_chats", gpu=True)
import_texts = Stage("import_texts", "sublim.sae_texts:import_texts")
gather_texts = Stage("gather_texts", "sublim.sae_texts:gather_texts")
import_sae = Stage("import_sae", "sublim.sae:import_sae")
train_sae = Stage("train_sae", "sublim.sae_training:train_sae", gpu=True)
measure_sae = Stage("measure_sae", "sublim.sae_quality:measure_sae", gpu=True)
word_rows = Stage("word_rows", "sublim.feature_rows:word_rows")
encode_features = Stage("encode_features", "sublim.feature_cache:encode_features", gpu=True)
contrast_features = Stage("contrast_features", "sublim.features:contrast_features")
overlap_features = Stage("overlap_features", "sublim.features:overlap_features", version=2)
show_examples = Stage("show_examples", "sublim.feature_rows:show_examples")
vector_features = Stage("vector_features", "sublim.feature_rows:vector_features")
draw_features = Stage("draw_features", "sublim.feature_figures:draw_features")
draw_probe_layers = Stage("draw_probe_layers", "sublim.feature_figures:draw_probe_layers")
