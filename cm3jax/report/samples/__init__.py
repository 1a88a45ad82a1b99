"""What a run's report shows beside its curves, drawn from parameters in training, by learner."""
