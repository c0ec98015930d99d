"""Searches hyper-parameters of a configuration on its validation split; the test split is never opened.

python -m experiments.tune --config FILE.py[:ARGUMENT] --out DIR --trials N [--space KIND,...] [--keep NAME]
    [--config.FIELD=VALUE ...]

  --trials   how many trials there are in the end; started again, the study goes on where it was
  --space    what is searched, all of these by default, as far as the configuration has them:
               weights         of each term, log-uniform from a tenth to ten times the configuration's
               inflection      of the Gompertz schedules, together, in [0.05, 0.4]; of gompertz_adaptive in [0.15, 0.4]
               min_inflection  of gompertz_adaptive, together, in [0.02, 0.15]
               rate            of the Gompertz schedules, together, in [4, 20]
               temperature     of the terms that soften by one above 1, together, in [1, 8]
             together are those of equal value; bounds are widened where they leave out the configuration's own
  --keep     writes the best values into gkd_jax/recipes/tuned.json, where METHOD@tuned finds them, and the study's
             record into experiments/results/tuning/NAME.json

Each trial is a run with the seeds of the configuration; what is maximised is their mean accuracy on the validation
images after the last epoch. The first trial is the configuration as it is, the others are drawn by Optuna's
tree-structured Parzen estimator (Bergstra et al., "Algorithms for hyper-parameter optimization", 2011), each from a
seed of its own, so that a study that was stopped goes on as it would have. A trial whose loss became NaN counts as
failed.
The weight of the cross-entropy stays as it is: against it the other weights are measured.

What is in DIR: study.db (Optuna's, SQLite), study.json (the record), teacher (trained once), trials/NNNN.
"""
