"""What every wing may use and what knows no learner: seeds, files, memory, words, figures."""
