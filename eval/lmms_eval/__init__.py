"""An add-on for lmms-eval, which lives in an environment of its own: our generation as its model `vlm_entropy`, and
its tasks on local copies of their data. Nothing of ours imports it; see run_scripts/lmms_eval.sh.
"""
