import sys

from linkproof.cli import main

sys.exit(main())
