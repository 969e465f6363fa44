#!/usr/bin/env bash
# libSBML's parser of Level 3 formulas takes "(1/3)" for one number, parentheses included, even where they belong to a
# call: cos(1/3) is a syntax error, while cos(1.0/3), cos((1/3)) and (1/3)^x are read.
# The exporter of ude was written on the guess that cos(1/3) is read as the cosine of one third.
# Exits with 1 when the behavior changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet python-libsbml==5.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import libsbml

print("libSBML", libsbml.getLibSBMLDottedVersion())
read = {}
for text in ("cos(1/3)", "max(x, cos(1/3))", "cos(-2/7)", "cos(1.0/3)", "cos((1/3))", "(1/3)^x", "cos(x/3)"):
    made = libsbml.parseL3Formula(text)
    read[text] = made is not None
    told = libsbml.formulaToL3String(made) if made else libsbml.getLastParseL3Error().splitlines()[0]
    print(f"{text:18} {'read as' if made else 'refused:'} {told}")
refused = {text for text, fine in read.items() if not fine}
sys.exit(0 if refused == {"cos(1/3)", "max(x, cos(1/3))", "cos(-2/7)"} else 1)
PYTHON
