"""From a user's request to run folders: recipes, evaluation of a run, comparison of learners, baselines."""
