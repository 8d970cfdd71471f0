"""Drawing: marks, curves and scatter plots as SVG.

No stage starts here; each subject draws its own figures with these. It imports no other room.
"""
