"""Where things are."""

import pathlib

from harness import ROOT

KUBERNETES = ROOT / "deploy/kubernetes"
CHART = ROOT / "deploy/helm/tls-sessiond"
# In memory, and of this test alone (harness.alone).
RUN = pathlib.Path("/run/deploy")
