"""The probe study: whether rows of the teacher can be told from rows of the base, layer by layer."""
