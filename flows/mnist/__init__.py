"""The digits experiment: teachers, students of their auxiliary logits, and controls with another initialisation."""
