"""The flow of the MNIST experiment: teachers, students of their auxiliary logits, and controls."""
