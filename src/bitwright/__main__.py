"""python -m bitwright"""

from bitwright.cli.main import app

app()
