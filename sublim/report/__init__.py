"""HTML reports: their content, sentences, figures and templates, and the files beside them.

Nothing here is a stage. Flows write their report at the end of a run.
"""
