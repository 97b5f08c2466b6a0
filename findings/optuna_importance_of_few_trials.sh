#!/usr/bin/env bash
# optuna 5.0.0: optuna.importance.get_param_importances with the default evaluator, PED-ANOVA.
# Guess: with few trials importances are noisy; a parameter that explains all of the objective still ranks first.
# Behavior: with ten complete trials or fewer the values hardly depend on the objective: near 1/k for k parameters,
# here with the irrelevant one first. From eleven trials on the relevant one has over 0.9. fANOVA ranks it first always.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet optuna==5.0.0 numpy==2.3.4 scikit-learn==1.7.2
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial):
    return 100 * trial.suggest_float("relevant", 0, 1) + 0.001 * trial.suggest_float("irrelevant", 0, 1)


def importances(n_trials, evaluator=None):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective, n_trials=n_trials)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return round(float(shares["relevant"]), 3)


default = {n: importances(n) for n in (8, 10, 11, 20)}
fanova = {n: importances(n, optuna.importance.FanovaImportanceEvaluator(seed=0)) for n in (8, 10)}
print("importance of the relevant parameter: default", default, "fANOVA", fanova)
assert default[8] < 0.6 and default[10] < 0.6 and default[11] > 0.9 and default[20] > 0.9
assert min(fanova.values()) > 0.8
print("as described, optuna", optuna.__version__)
PYTHON
