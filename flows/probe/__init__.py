"""The probe study: whether linear probes tell rows of the teacher from rows of the base, layer by layer."""
