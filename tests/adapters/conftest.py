"""The oracle of the networks is installed on the newer leg only (requirements-test.txt)."""

import sys

collect_ignore = ["test_oracle.py"] if sys.version_info < (3, 11) else []
