"""The SAE study: features that differ between teacher and base, on the rows that the students are trained on."""
