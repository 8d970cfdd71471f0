"""The stages of reading, steering and mechanism as cached tasks."""

from tasks.stage import Stage

read_activations = Stage("read_activations", "sublim.activations:read_activations", gpu=True)
mean_activations = Stage("mean_activations", "sublim.means:mean_activations", gpu=True)
difference_vectors = Stage("difference_vectors", "sublim.means:difference_vectors")
import_vector = Stage("import_vector", "sublim.means:import_vector")
train_vector = Stage("train_vector", "sublim.trained_vector:train_vector", gpu=True)
animal_rows = Stage("animal_rows", "sublim.animal_rows:animal_rows")
sweep = Stage("steering_sweep", "sublim.steering_sweep:sweep", gpu=True)
steering_curve = Stage("steering_curve", "sublim.steering_sweep:steering_curve", version=2)
alignment = Stage("alignment", "sublim.mechanism:alignment")
draw_steering = Stage("draw_steering", "sublim.steering_figures:draw_steering", version=2)
