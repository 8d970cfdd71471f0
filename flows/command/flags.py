"""Types of the options that several commands have."""

from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(show_default=False)]
Json = Annotated[bool, Parameter(name="--json", show_default=False, help="Print the result as JSON, for programs.")]
Key = Annotated[str, Parameter(help="The first six or more digits of the artifact's key.")]
