"""The toy models' stages as cached tasks."""

from tasks.stage import Stage

train_superposition = Stage("train_superposition", "sublim.superposition:train_superposition", gpu=True)
draw_superposition = Stage("draw_superposition", "sublim.superposition_figures:draw_superposition")
prepare_digits = Stage("prepare_digits", "sublim.mnist_data:prepare_digits")
train_mnist = Stage("train_mnist", "sublim.mnist:train_mnist", gpu=True)
draw_mnist = Stage("draw_mnist", "sublim.mnist_figures:draw_mnist")
