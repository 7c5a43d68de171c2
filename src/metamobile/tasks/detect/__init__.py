"""Detection: results and metric (what is answered, how good it is; no torch), task (what is trained)."""
