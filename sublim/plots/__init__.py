"""Drawing of figures as SVG: charts inside a report, and matplotlib figures as files.

Nothing here is a stage, and it imports no other room. Each subject draws its own figures with it.
"""
