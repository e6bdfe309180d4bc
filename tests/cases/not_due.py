"""The cases that no implementation here sends yet, each with what brings it. A case in neither place is a failure."""

from __future__ import annotations

#: Area -> the issue whose work brings the route that its cases are sent to.
AREAS = {
    "gateway": "gateway: tests/inference_app/test_gateway.py",
    "scoring_and_urls": "manifests dialect (document 000)",
}
#: Cases of other areas whose route is not of the platform API.
CASES = {
    "DATA-035": "the 50 MiB are a limit of documents 003 and 004: training dialect",
    "DATA-043": "files of a split are named in a configuration of document 003: training dialect",
}
