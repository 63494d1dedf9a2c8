"""`python -m cfn` is the `cfn` command."""

import sys

from cfn.cli import main

sys.exit(main())
