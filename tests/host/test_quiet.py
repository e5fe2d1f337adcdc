"""What C code prints stays off standard output, also when its buffers are written at the end of the process."""

import subprocess
import sys

CODE = """
import ctypes
from bitwright.host.quiet import no_words_of_c
libc = ctypes.CDLL(None)
print("before")
with no_words_of_c():
    libc.printf(b"a debugging line\\n")
libc.printf(b"from C\\n")
print("after")
"""


def test_c_is_silent_in_the_block_and_speaks_after_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")) == ["", "after", "before", "from C"]
