"""`python -m keras_mixer` is the command line."""

import sys

from keras_mixer.cli import main

sys.exit(main())
