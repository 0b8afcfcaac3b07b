"""How is a synthetic cohort of stroke patients built, with the truth of every label known?

Per patient one latent vascular risk; scans and record are independent views of it. So every posterior is exact,
and the best AUROC that any model can reach is known before one is trained.
"""

from simulation.cohorts.synthetic.cohort import build

__all__ = ["build"]
